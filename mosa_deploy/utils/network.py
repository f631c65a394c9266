"""Ask whether a host answers at all, before a library retries for a minute."""

import http.client
import urllib.error
import urllib.request

PREFLIGHT_SECONDS = 5.0
"""How long a host may take to answer; timm retries an unreachable hub for 52 s."""


def why_unreachable(url: str) -> str | None:
    """Why the host of `url` does not answer one HEAD request in time; None if it answers, even with an error."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PREFLIGHT_SECONDS).close()
    except urllib.error.HTTPError:
        return None
    except (OSError, http.client.HTTPException) as error:
        return str(getattr(error, "reason", error))
    return None
