"""The signed-in user: ``GET /api/auth/me``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import AdhAuthError
from ..store.remedies import login_command_line

if TYPE_CHECKING:
    import requests

    from ..for_requests import AdhAuth


from typing import TYPE_CHECKING

from ..clients.settings import Settings
from ..oauth import endpoint

if TYPE_CHECKING:
    import requests


def user_in(response: requests.Response, auth: AdhAuth) -> dict[str, Any]:
    from ..common.text import printable
    from ..oauth.replies import error_code

    if response.status_code == 200:
        try:
            user = response.json()
        except ValueError:
            user = None
        if isinstance(user, dict):
            return user
    # requests has decoded the body, whatever its headers say of an encoding.
    code = error_code({"www-authenticate": response.headers.get("www-authenticate", "")}, response.content)
    facts = ", ".join(fact for fact in (code, printable(response.headers.get("x-request-id"))) if fact)
    step = (
        f"You may have to {login_command_line(auth.token_file)}"
        if response.status_code == 401
        else "Is the base URL right? If so, try again later"
    )
    raise AdhAuthError(
        f"{response.url} answered HTTP {response.status_code}{f' ({facts})' if facts else ''} and no user. {step}"
    )


#: Seconds to connect, and between two pieces of the answer of `/api/auth/me`.
GREETING_TIMEOUT = (5.0, 10.0)


def greeting(settings: Settings, via: requests.Session | None) -> str:
    """Greets by ``GET /api/auth/me``.

    The session is there by now, so that no trouble with this call is a failure of the sign-in.
    """
    try:
        user = signed_in_user(settings, via)
    except AdhAuthError as error:
        return f"Signed in; who as could not be asked: {error.message}."
    name = next((str(user[key]) for key in ("name", "email", "id") if user.get(key)), "a user without a name")
    return f"Hello {name}, you are signed in."


def signed_in_user(settings: Settings, via: requests.Session | None) -> dict[str, Any]:
    import requests

    from ..clients.failure_reason import describe_failure
    from ..for_requests import AdhAuth

    secret = settings.client_secret.reveal()
    auth = AdhAuth(
        settings.file.path,
        client_id=settings.client_id,
        client_secret=secret,
        base_url=settings.base_url,
        refresh_via=via,
    )
    trouble = None
    try:
        response = (via or requests).get(
            settings.base_url + endpoint.ME_PATH, auth=auth, timeout=GREETING_TIMEOUT
        )
    except AdhAuthError:
        raise
    except requests.RequestException as error:
        trouble = describe_failure(error)
    if trouble is not None:
        raise AdhAuthError(f"{settings.base_url} can't be reached ({trouble})")
    return user_in(response, auth)
