"""The command `mosa serve`."""

import os
import socket
import sys
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Sequence

from mosa_deploy.errors import ConfigError
from mosa_deploy.utils.folders import require_home, require_temporary
from serving.ports import port_error

SERVICE = "serving.service:Classifier"


def serve(arguments: Sequence[str], prog: str) -> None:
    """Serve every task of a store over HTTP.

    Raises:
        MosaError: a setting cannot be read, the store is empty, or the port is taken.
    """
    parser = ArgumentParser(
        prog=prog,
        description="Serve every task of a store over HTTP, from any folder.",
        epilog="Every other limit is an environment variable MOSA_...: the service prints all of them at start.",
        formatter_class=ArgumentDefaultsHelpFormatter,
    )
    artifacts = os.environ.get("MOSA_ARTIFACTS", "artifacts")
    parser.add_argument("--artifacts", default=artifacts, help="the store: a folder, or a URL of fsspec")
    parser.add_argument("--host", default="0.0.0.0", help="the address to listen on")
    parser.add_argument("--port", type=int, default=3000)
    given = parser.parse_args(arguments)
    os.environ["MOSA_ARTIFACTS"] = given.artifacts
    from serving.settings import Settings
    from serving.store import check_store

    require_temporary()
    require_home("BENTOML_HOME", "bentoml")
    host = check_port(given.host, given.port)
    check_store(Settings.from_environment())
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE, "--host", host, "--port", str(given.port)]
    # The server takes this process's place, and so its signals.
    os.execv(sys.executable, command)


def check_port(host: str, port: int) -> str:
    """The address of a host as a number, which is all that BentoML takes.

    Raises:
        ConfigError: nothing can listen there.
    """
    if not 1 <= port <= 65535:
        raise ConfigError(f"--port {port}: 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
        return str(address[0])
    except OSError as error:
        raise port_error(f"{host}:{port}", error) from None
