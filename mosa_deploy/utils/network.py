"""Whether a host answers, before a library retries in vain."""

import http.client
import urllib.error
import urllib.request

PREFLIGHT_SECONDS = 5.0
"""timm retries an unreachable hub for 52 s; one request with this limit goes first."""


def unreachable(url: str) -> str | None:
    """Why `url`'s host does not answer one HEAD request within the limit; None if it answers, whatever it says."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PREFLIGHT_SECONDS).close()
    except urllib.error.HTTPError:
        return None
    except (OSError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error))
    return None
