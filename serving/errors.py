"""Errors that end a request, each with its HTTP status."""

from collections.abc import Sequence
from typing import Any

from mosa_deploy.bundles.record import TASK_NAME_RULE
from mosa_deploy.errors import BundleError, MosaError, ParityError


class RequestError(MosaError):
    """A fault with its HTTP status. After `retry_after` seconds the request is worth another try."""

    def __init__(self, status: int, reason: str, retry_after: int | None = None) -> None:
        # What a sender wrote may be in it: line breaks, and halves of characters, which UTF-8 cannot encode.
        self.reason = " ".join(reason.encode("utf-8", "backslashreplace").decode().splitlines())
        super().__init__(self.reason)
        self.status, self.retry_after = status, retry_after

    @classmethod
    def of(cls, fault: Exception) -> "RequestError":
        """Any fault with a status: 422 for a bundle that cannot be served, 503 for what is not the sender's fault."""
        if isinstance(fault, RequestError):
            return fault
        status = 422 if isinstance(fault, BundleError | ParityError) else 503
        return cls(status, str(fault).splitlines()[0] if str(fault) else type(fault).__name__)


class BodyError(RequestError):
    """A request whose body or fields cannot be understood; the answer adds a command that would be."""


SHOWN = 80
"""The most characters that an error repeats of what was sent."""


def shown(text: str) -> str:
    """What a sender wrote, as an error repeats it: short, and in one line."""
    short = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return short if short.isprintable() else ascii(short)[1:-1]


ALTERNATIVES = ("str", "tuple[str, ...]")
"""What pydantic adds to a fault's place where a field may be a text or a list: Python's words for it."""

NAMED = 5
"""The most faults of one request that are named; a form may have a thousand."""


def first_faults(faults: Sequence[Any], skip: int = 0) -> str:
    """What pydantic or FastAPI found, in one line. `skip` leaves out the first parts of a fault's place."""
    found = []
    for fault in faults:
        place = ".".join(str(part) for part in fault["loc"][skip:] or fault["loc"] if part not in ALTERNATIVES)
        reason = str(fault["msg"]).removeprefix("Value error, ")
        reason = reason.replace("valid tuple", "valid list").replace("Tuple should", "the list should")
        if fault["type"] == "model_attributes_type":
            reason = "must be a JSON object, with Content-Type: application/json"
        if fault["type"] == "string_pattern_mismatch" and place == "name":
            reason = f"{shown(str(fault['input']))} is no task: {TASK_NAME_RULE}"
        found.append(f"{place}: {reason}" if place else reason)
    more = f"; and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return "; ".join(found[:NAMED]) + more


def busy(reason: str) -> RequestError:
    """503: too much is asked at once."""
    return RequestError(503, f"{reason}; ask again in a second", retry_after=1)


def late(seconds: float) -> RequestError:
    """504: the deadline passed."""
    return RequestError(
        504, f"no answer within {seconds:g} s: the service is busy; ask again later, or for fewer images"
    )
