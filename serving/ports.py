"""Why a port cannot be had. This needs the standard library alone: `mosa --help` loads it."""

import errno

from mosa_deploy.errors import ConfigError


def port_error(place: str, error: OSError) -> ConfigError:
    """The error of an address, HOST:PORT, at which nothing can listen."""
    if error.errno == errno.EADDRINUSE:
        return ConfigError(f"{place}: something listens there already: stop it, or choose another --port")
    return ConfigError(f"{place}: {error.strerror}: choose another --host or --port")
