"""Which requests are sent again, when, and what is made of the last response."""

import ssl
import time
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
import tenacity
from pydantic import ValidationError

from mosa_deploy.client.requests import ApiRequest
from mosa_deploy.client.schema import Fault
from mosa_deploy.errors import ServiceError

T = TypeVar("T")

NOT_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""The service never saw the request."""

NEVER_SENT = (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.ProxyError)
"""The request itself, or the way to the service, is wrong, and stays so."""

LONGEST = 120.0
"""Seconds: a service that asks for more is not waited for."""


@dataclass
class Attempts:
    """What happened to a request so far."""

    lost: bool = False
    """A response did not arrive, so the service may have done already what it is asked for again."""


def should_retry(state: tenacity.RetryCallState) -> bool:
    """Whether a request failed for a temporary reason: no response, 429, or 503 with Retry-After.

    A request that must not be carried out twice is sent again only if the service has not begun it.
    """
    assert state.outcome is not None
    request: ApiRequest[Any] = state.args[0]
    if state.outcome.failed:
        fault = state.outcome.exception()
        if isinstance(fault, NEVER_SENT) or _is_certificate_fault(fault):
            return False
        return isinstance(fault, httpx.TransportError if request.repeatable else NOT_CONNECTED)
    response: httpx.Response = state.outcome.result()
    if response.status_code not in (429, 503) or seconds_asked(response) > LONGEST:
        return False
    return response.status_code == 429 or (request.repeatable and "retry-after" in response.headers)


def _is_certificate_fault(fault: BaseException | None) -> bool:
    """Whether TLS failed, which another attempt does not mend."""
    while fault is not None:
        if isinstance(fault, ssl.SSLError):
            return True
        fault = fault.__cause__ or fault.__context__
    return False


def retry_delay(state: tenacity.RetryCallState) -> float:
    """Seconds to wait: those that the service asks for, and a random time that grows, so that clients spread out."""
    assert state.outcome is not None
    spread = float(tenacity.wait_random_exponential(multiplier=0.1, max=5)(state))
    return spread + (0 if state.outcome.failed else seconds_asked(state.outcome.result()))


def seconds_asked(response: httpx.Response) -> float:
    """What Retry-After asks for, as seconds or as a date; 0 without it."""
    asked = str(response.headers.get("retry-after", "")).strip()
    if asked.isdigit():
        return float(asked)
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except ValueError:
        return 0.0


def retrying(attempts: int) -> dict[str, Any]:
    """The arguments of tenacity's Retrying, sync and async. It calls a function of a request and its `Attempts`."""
    return {
        "retry": should_retry,
        "wait": retry_delay,
        "stop": tenacity.stop_after_attempt(attempts),
        "before_sleep": _remember,
        "retry_error_callback": _last_outcome,
    }


def _remember(state: tenacity.RetryCallState) -> None:
    assert state.outcome is not None
    if state.outcome.failed and not isinstance(state.outcome.exception(), NOT_CONNECTED):
        state.args[1].lost = True


def _last_outcome(state: tenacity.RetryCallState) -> Any:
    """Return the last attempt's response, or raise its exception."""
    assert state.outcome is not None
    return state.outcome.result()


def read_response(request: ApiRequest[T], response: httpx.Response, attempts: Attempts) -> T:
    """Parse the response to a request.

    Raises:
        ServiceError: the service refused the request, or it is not a service of this kind.
    """
    if response.is_success or (attempts.lost and response.status_code == request.done_already):
        try:
            return request.parse(response.content)
        except ValidationError:
            detail = f"{response.url} answers, but not as this version of the service does: check the address"
            raise ServiceError(response.status_code, detail) from None
    if response.has_redirect_location:
        there = response.headers["location"]
        raise ServiceError(response.status_code, f"{response.url} redirects to {there}: give the address of the latter")
    try:
        detail = Fault.model_validate_json(response.content).detail
    except ValidationError:
        detail = f"the service answers HTTP {response.status_code} {response.reason_phrase}".rstrip()
    raise ServiceError(response.status_code, detail)


def unreachable(request: ApiRequest[Any], fault: httpx.TransportError) -> ServiceError:
    """The error for a request without any response."""
    reason = str(fault) or type(fault).__name__
    if not request.repeatable and not isinstance(fault, (*NOT_CONNECTED, *NEVER_SENT)):
        return ServiceError(
            0, f"no answer arrived ({reason}), but the service may have done it: look before you ask again"
        )
    address = "that address"
    with suppress(RuntimeError):  # httpx's word for a fault that names no request
        url = fault.request.url
        address = f"{url.scheme}://{url.netloc.decode()}"
    return ServiceError(0, f"the service does not answer ({reason}): is it running at {address}?")
