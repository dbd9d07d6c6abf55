"""The signed-in user: ``GET /api/auth/me``, with a token that is refreshed on the way if it has expired."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..clients.settings import Settings
from ..common.text import printable
from ..errors import AdhAuthError
from ..oauth.endpoint import ME_PATH
from ..oauth.replies import error_code

if TYPE_CHECKING:
    import requests

    from ..for_requests import AdhAuth

__all__ = ["fetch_signed_in_user", "fetch_user", "greeting"]

#: Seconds to connect, and between two pieces of the reply, where a person waits for a greeting only.
GREETING_TIMEOUT = (5.0, 10.0)


def fetch_user(
    auth: AdhAuth,
    settings: Settings,
    *,
    timeout: tuple[float, float],
    client: requests.Session | None = None,
) -> dict[str, Any]:
    """Return the user that the API names.

    `timeout`: seconds to connect, and between two pieces of the reply. `client` carries the call instead of
    requests itself. Raises `AdhAuthError`.
    """
    import requests

    from ..clients.failure_reason import describe_failure

    base_url, problem = settings.base_url, None
    try:
        response = (client or requests).get(base_url + ME_PATH, auth=auth, timeout=timeout)
    except AdhAuthError:
        raise
    except requests.RequestException as error:
        problem = describe_failure(error)
    # Raised out here: as its context, the client's error would keep frames that hold the token.
    if problem is not None:
        raise AdhAuthError(
            f"{base_url} can't be reached ({problem}). The session is as it was; try again later"
        )
    return _user_in(response, settings.store.sign_in_command())


def fetch_signed_in_user(settings: Settings, client: requests.Session | None) -> dict[str, Any]:
    """Return the user of the session that was just written. Raises `AdhAuthError`."""
    from ..for_requests import AdhAuth

    secret = settings.client_secret.reveal()
    auth = AdhAuth(
        store=settings.store,
        client_id=settings.client_id,
        client_secret=secret,
        base_url=settings.base_url,
        refresh_via=client,
    )
    return fetch_user(auth, settings, timeout=GREETING_TIMEOUT, client=client)


def greeting(settings: Settings, client: requests.Session | None) -> tuple[str, str | None]:
    """Return a sentence that names the user, and the name; None if it is not known.

    The session is on disk by now, so an error of this call is no failure of the sign-in.
    """
    try:
        user = fetch_signed_in_user(settings, client)
    except AdhAuthError as error:
        return f"Signed in, but the user could not be fetched: {error.message}.", None
    name = next((str(user[key]) for key in ("name", "email", "id") if user.get(key)), None)
    return f"Hello {name or 'a user without a name'}, you are signed in.", name


def _user_in(response: requests.Response, sign_in: str) -> dict[str, Any]:
    if response.status_code == 200 and (user := _json_object(response)) is not None:
        return user
    # requests has decoded the body, whatever its headers say of an encoding.
    code = error_code({"www-authenticate": response.headers.get("www-authenticate", "")}, response.content)
    facts = ", ".join(fact for fact in (code, printable(response.headers.get("x-request-id"))) if fact)
    answer = f"HTTP {response.status_code}{f' ({facts})' if facts else ''}"
    next_step = (
        f"You may have to {sign_in}"
        if response.status_code == 401
        else "Is the base URL right? If so, try again later"
    )
    raise AdhAuthError(f"{response.url} answered {answer} without a user. {next_step}")


def _json_object(response: requests.Response) -> dict[str, Any] | None:
    try:
        value = response.json()
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
