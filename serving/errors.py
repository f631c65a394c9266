"""What a request may be told instead of an answer."""

from mosa_deploy.errors import BundleError, MosaError, ParityError


class RequestError(MosaError):
    """A fault with its HTTP status; `retry_after` are the seconds after which it may have passed."""

    def __init__(self, status: int, reason: str, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after = status, reason, retry_after

    @classmethod
    def of(cls, fault: Exception) -> "RequestError":
        """Any fault as a refusal: a bundle that does not hold is its sender's, the rest is the service's."""
        if isinstance(fault, RequestError):
            return fault
        status = 422 if isinstance(fault, BundleError | ParityError) else 503
        return cls(status, str(fault).splitlines()[0] if str(fault) else type(fault).__name__)


def busy(reason: str) -> RequestError:
    """Too much is asked at once."""
    return RequestError(503, f"{reason}; ask again in a second", retry_after=1)


def late(seconds: float) -> RequestError:
    """The deadline passed."""
    return RequestError(
        504, f"no answer within {seconds:g} s: the service is busy; ask again later, or for fewer images"
    )
