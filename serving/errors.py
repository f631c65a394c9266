"""Errors that end a request, each with its HTTP status."""

from mosa_deploy.errors import BundleError, MosaError, ParityError


class RequestError(MosaError):
    """A fault with its HTTP status. After `retry_after` seconds the request is worth another try."""

    def __init__(self, status: int, reason: str, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after = status, reason, retry_after

    @classmethod
    def of(cls, fault: Exception) -> "RequestError":
        """Any fault with a status: 422 for a bundle that cannot be served, 503 for what is not the sender's fault."""
        if isinstance(fault, RequestError):
            return fault
        status = 422 if isinstance(fault, BundleError | ParityError) else 503
        return cls(status, str(fault).splitlines()[0] if str(fault) else type(fault).__name__)


def busy(reason: str) -> RequestError:
    """503: too much is asked at once."""
    return RequestError(503, f"{reason}; ask again in a second", retry_after=1)


def late(seconds: float) -> RequestError:
    """504: the deadline passed."""
    return RequestError(
        504, f"no answer within {seconds:g} s: the service is busy; ask again later, or for fewer images"
    )
