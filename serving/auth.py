"""Who may ask and who may change: keys in `Authorization: Bearer` or `X-API-Key`."""

import hashlib
import hmac
from collections.abc import Sequence

from starlette.requests import Request

from serving.refusal import RefusedError
from serving.settings import Settings


def may_ask(request: Request) -> None:
    """Raises RefusedError 401 where keys are set and the request has none of them; an admin's key will do."""
    settings: Settings = request.app.state.settings
    if settings.api_keys and not _known(_key(request), (*settings.api_keys, *settings.admin_keys)):
        raise RefusedError(401, "send one of the service's API keys as `Authorization: Bearer ...`")


def may_change(request: Request) -> None:
    """Raises RefusedError 403 where no admin's key is set, 401 where the request has none of them."""
    settings: Settings = request.app.state.settings
    if not settings.admin_keys:
        raise RefusedError(403, "changes are refused: the service was started without MOSA_ADMIN_KEYS")
    if not _known(_key(request), settings.admin_keys):
        raise RefusedError(401, "send one of the service's admin keys as `Authorization: Bearer ...`")


def _key(request: Request) -> str:
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    return value.strip() if kind.lower() == "bearer" else request.headers.get("x-api-key", "")


def _known(given: str, keys: Sequence[str]) -> bool:
    """Compare with every key, each in the same time whatever was given."""
    digest = _digest(given)
    found = [hmac.compare_digest(digest, _digest(key)) for key in keys]
    return any(found)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
