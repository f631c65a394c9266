"""Who may ask and who may change tasks: keys in `Authorization: Bearer` or `X-API-Key`.

The functions are async because FastAPI runs plain ones in threads: one per request, each with memory of its own.
"""

import hashlib
import hmac
from collections.abc import Sequence

from fastapi import Security
from fastapi.security import APIKeyHeader, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param
from starlette.requests import Request

from serving.errors import RequestError
from serving.settings import Settings

NEEDED = "For changes an admin's key; to ask, one of the API keys, if the service has any."

HEADER = "X-API-Key"

SCHEMES = (
    Security(HTTPBearer(auto_error=False, description=NEEDED)),
    Security(APIKeyHeader(name=HEADER, auto_error=False, description=NEEDED)),
)
"""Dependencies that describe the keys in OpenAPI."""

SECURITY: list[dict[str, list[str]]] = [{"HTTPBearer": []}, {"APIKeyHeader": []}]
"""The same for a route that leaves them out: FastAPI takes its time to solve each."""


async def may_ask(request: Request) -> None:
    """Raises RequestError 401 if API keys are set and the request has neither one of them nor an admin's key."""
    settings: Settings = request.app.state.settings
    keys = _keys(request)
    if settings.api_keys and not _known(keys, (*settings.api_keys, *settings.admin_keys)):
        raise _unauthorised(keys, "API keys")


async def may_change(request: Request) -> None:
    """Raises RequestError 403 if nobody may change, or not with this key; 401 if there is no key or an unknown one."""
    settings: Settings = request.app.state.settings
    if not settings.admin_keys:
        raise RequestError(403, "changes are refused: the service was started without MOSA_ADMIN_KEYS")
    keys = _keys(request)
    may_change, may_ask = _known(keys, settings.admin_keys), _known(keys, settings.api_keys)
    if not may_change and may_ask:
        raise RequestError(403, "this key may ask, but not change tasks: send one of the service's admin keys")
    if not may_change:
        raise _unauthorised(keys, "admin keys")


def _keys(request: Request) -> tuple[str, str]:
    """What both headers hold: a proxy that asks who the user is may need `Authorization` for itself."""
    scheme, bearer = get_authorization_scheme_param(request.headers.get("authorization"))
    return bearer.strip() if scheme.lower() == "bearer" else "", request.headers.get(HEADER, "").strip()


def _unauthorised(given: Sequence[str], needed: str) -> RequestError:
    said = "the service does not know this key: " if any(given) else ""
    return RequestError(401, f"{said}send one of the service's {needed} as `Authorization: Bearer ...`")


def _known(given: Sequence[str], keys: Sequence[str]) -> bool:
    """Compare with every key. The time that it takes says nothing about the keys."""
    digests = [_digest(each) for each in given]
    found = [hmac.compare_digest(digest, _digest(key)) for key in keys for digest in digests]
    return any(found)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
