"""The table of commands: name, help, arguments, and the function that runs it.

A command's module is imported when the command runs, so ``adh-auth --help`` answers at once. The imports are
spelled out: PyInstaller and its like freeze what they see imported, and see no module that a string names.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import NamedTuple

from . import options

__all__ = ["COMMANDS", "Command"]


class Command(NamedTuple):
    """One command. `run` returns the exit code, or raises `AdhAuthError`."""

    run: Callable[[Namespace], int]
    add_options: Callable[[ArgumentParser], None]
    summary: str
    description: str
    example: str


def _demo(args: Namespace) -> int:
    from .demo.command import demo_command

    return demo_command(args)


def _login(args: Namespace) -> int:
    from .login_command import login_command

    return login_command(args)


def _save(args: Namespace) -> int:
    from .session_commands import save_command

    return save_command(args)


def _status(args: Namespace) -> int:
    from .status_command import status_command

    return status_command(args)


def _token(args: Namespace) -> int:
    from .session_commands import token_command

    return token_command(args)


def _me(args: Namespace) -> int:
    from .session_commands import me_command

    return me_command(args)


def _refresh(args: Namespace) -> int:
    from .session_commands import refresh_command

    return refresh_command(args)


def _revoke(args: Namespace) -> int:
    from .session_commands import revoke_command

    return revoke_command(args)


def _logout(args: Namespace) -> int:
    from .session_commands import logout_command

    return logout_command(args)


def _store(args: Namespace) -> int:
    from .store_command import store_command

    return store_command(args)


def _sandbox(args: Namespace) -> int:
    from .sandbox_command import sandbox_command

    return sandbox_command(args)


COMMANDS = {
    "demo": Command(
        _demo,
        options.add_demo_options,
        "watch it work, without an account or a network",
        """\
Start a local ADH whose tokens live two seconds, and several processes
(requests, httpx, asyncio) on one token file; with --store or --machines, they
stand for machines that share a session in a store. Exit 1 if a request failed
or a refresh token was used twice. With --json: only the totals, as one object.""",
        "adh-auth demo --seconds 20",
    ),
    "login": Command(
        _login,
        options.add_login_options,
        "sign in with the browser",
        """\
Authorization code with PKCE: open the browser, take the code on the loopback
port of --redirect-uri, write the session. The redirect URI has to be
registered for the app exactly as it is given here. With --json, stdout holds
one object only; what a person has to read is on stderr.""",
        'adh-auth login --scope "profile:read discussions:read discussions:write"',
    ),
    "save": Command(
        _save,
        options.add_save_options,
        "make an exchange reply the session; move a token file to a store",
        """\
Read the JSON reply of the code exchange from FILE, or from stdin, and make it
the session: written under the lock, private, with expires_at added. No token
is printed. With --store, FILE may be a token file in use: its session moves to
the store under the locks of both, and the file says from then on where it is.""",
        "curl -s … /api/oauth/signin/exchange | adh-auth save",
    ),
    "status": Command(
        _status,
        options.add_store_options,
        "show the state of the session, and what to do",
        """\
Show what the token file and the record beside it say, or the store. Sends
nothing, changes nothing, needs no client id or secret. Exit 1 if there is no
usable session, or its refresh token was refused.""",
        "adh-auth status --json | jq .signed_in",
    ),
    "token": Command(
        _token,
        options.add_session_options,
        "print an access token that works now",
        """\
Print the access token and nothing else; with --json, its type and expiry too.
It is refreshed first if it has less than 30 seconds to live by the stored
expiry; where no expiry is stored, the API is asked (GET /api/auth/me). One
that lives longer is printed without a call, and needs no client id or secret.""",
        'curl -H "Authorization: Bearer $(adh-auth token)" https://api.agenticdeveloperhub.com/api/auth/me',
    ),
    "me": Command(
        _me,
        options.add_session_options,
        "show who is signed in",
        "Print the user that the API returns (GET /api/auth/me).",
        "adh-auth me --json",
    ),
    "refresh": Command(
        _refresh,
        options.add_session_options,
        "refresh now, whatever the clock says",
        """\
Trade the refresh token for a new pair now, or share the refresh that another
process has under way.""",
        "adh-auth refresh --json | jq .seconds_left",
    ),
    "revoke": Command(
        _revoke,
        options.add_session_options,
        "sign out everywhere: end the session at the server",
        """\
Sign out everywhere: end the session at the server, for every copy of its
tokens, then remove the token file, or sign out in the store. If the server
can't be reached, the session stays. To sign out here only: adh-auth logout.""",
        "adh-auth revoke --token-file /srv/app/tokens.json",
    ),
    "logout": Command(
        _logout,
        options.add_store_options,
        "sign out here: remove the session, tell no server",
        """\
Sign out here: remove the token file and what stands beside it, after a refresh
in flight, or empty the session in the store. Sends nothing, needs no client id
or secret. The session lives on at the server, for other copies of its tokens;
to end it: adh-auth revoke, while it is there. No session is no error.""",
        "adh-auth logout --token-file /srv/app/tokens.json",
    ),
    "store": Command(
        _store,
        options.add_store_command_options,
        "set up and check a store for several machines",
        """\
init: make the table in PostgreSQL where it is missing; --print only prints it.
check: prove that writing works and lasts; warn of what a crash may lose; exit 1
if it does not work. list: the names of all sessions that are signed in.""",
        "adh-auth store init --print | psql",
    ),
    "sandbox": Command(
        _sandbox,
        options.add_sandbox_options,
        "run a local ADH to develop against, or a command with one",
        """\
Run a local ADH until Ctrl-C and print the lines that point a shell at it. It
is strict: a refresh token works once. With --json: one line with the
environment variables at once, one with the counts at the end.

With -- COMMAND: run that with the environment set, signed in, and end with its
exit status. stdout is the command's; with --json the counts are the last line
of stderr.""",
        "adh-auth sandbox --token-life 10 -- python main.py",
    ),
}
