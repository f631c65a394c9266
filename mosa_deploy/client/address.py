"""The address of a service, as people write it."""

import re

import httpx

from mosa_deploy.errors import ConfigError

HAS_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def service_url(address: str) -> httpx.URL:
    """The URL that an address means: `localhost:3000` and `http://localhost:3000/` are the same.

    A path is kept: behind a proxy the service may lie at `http://host/prefix`.

    Raises:
        ConfigError: no service can be at this address.
    """
    text = address.strip()
    try:
        url = httpx.URL(text if HAS_SCHEME.match(text) else f"http://{text.removeprefix('//')}")
    except httpx.InvalidURL:
        url = httpx.URL()
    port = 80 if url.port is None else url.port
    extra = url.query or url.fragment or any(map(str.isspace, text))
    if url.scheme not in ("http", "https") or not url.host or not 1 <= port <= 65535 or extra:
        raise ConfigError(f"'{address}' is not an address: give one like http://localhost:3000")
    return url
