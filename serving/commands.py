"""The commands `mosa serve` and `mosa score`."""

import os
import socket
import sys
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from mosa_deploy.errors import ConfigError
from mosa_deploy.utils.extras import require_package
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


def score(arguments: Sequence[str], prog: str) -> None:
    """Answer every task for every image of a folder, of tar files or of Parquet files, without a server.

    Raises:
        MosaError: an option, the images or a task cannot be used, or shards are damaged.
    """
    parser = ArgumentParser(
        prog=prog,
        description="Answer every task for every image of an archive, without a server.",
        epilog="A run that was stopped goes on with the same command. The service's MOSA_RUNTIME, MOSA_PRECISION,"
        " MOSA_THREADS, MOSA_MAX_BATCH and MOSA_MAX_PIXELS apply here too.",
    )
    parser.add_argument("--store", required=True, help="the store: a folder, or a URL of fsspec")
    parser.add_argument("--tasks", required=True, help="the tasks, with commas between them, or all")
    place = "a folder of images, or tar or Parquet files: one, a folder of them, or a pattern in quotes"
    parser.add_argument("--images", required=True, help=place)
    parser.add_argument("--out", type=Path, required=True, help="the folder for one Parquet file of answers per shard")
    parser.add_argument("--column", default="image", help="the column of a Parquet file with encoded images; image")
    top_k = "classes for each image, one row each; 1, or of several labels all that are answered, if not given"
    parser.add_argument("--top-k", type=int, help=top_k)
    images = "images of a folder that become one file of answers; 10,000"
    parser.add_argument("--shard-images", type=int, default=10_000, help=images)
    workers = "processes that decode images; one for each core if not given, but at most 8; 0 is a thread of this one"
    parser.add_argument("--workers", type=int, help=workers)
    cluster = "score on a Ray cluster: HOST:PORT of its head, or auto; --out and --images have to lie on storage that"
    parser.add_argument("--ray", metavar="ADDRESS", help=f"{cluster} all nodes share, and this machine to be a node")
    given = vars(parser.parse_args(arguments))
    require_package("pyarrow", "score")
    from serving.score import score as run
    from serving.score_options import ScoreConfig

    tasks = tuple(name.strip() for name in given.pop("tasks").split(",") if name.strip())
    run(ScoreConfig(tasks=tasks, **given))


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
