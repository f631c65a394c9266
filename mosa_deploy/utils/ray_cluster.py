"""Connect to a Ray cluster, and find out before anything starts whether its nodes can do the work.

What goes between nodes is paths: they have to see the same folder. Versions have to be the same too, because Ray sends
objects of Python from one to the other.
"""

import os
import socket
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import mosa_deploy
from mosa_deploy.errors import ConfigError
from mosa_deploy.utils.extras import require_package
from mosa_deploy.utils.files import write_text

ANSWER_SECONDS, NODE_SECONDS = 5.0, 120.0
"""How long an address may take to answer, and the nodes of a cluster to start a process each."""

SETTINGS = b"\0\0\0\4\0\0\0\0\0"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS
"""With these words a client of HTTP/2 begins, and a head, which speaks gRPC, answers with settings of its own."""

SEEN = ".shared"
"""A file by which a node finds that it sees a folder."""


def faults_of_gpus(address: str | None, gpus: float | None) -> list[str]:
    """What is wrong with the options --ray and --gpus together."""
    if gpus is None or (address is not None and gpus > 0):
        return []
    return [f"--gpus {gpus:g}: more than 0, and with --ray"]


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The package `ray`, connected to a cluster: HOST:PORT of its head, or `auto` for the one on this machine.

    Raises:
        ProviderError: Ray is not installed.
        ConfigError: no cluster answers there, or one of another Python or Ray.
    """
    named = f"--ray {address}"
    if address == "auto":
        require_package("ray", "ray")
        address = _found()
        named += f" (RAY_ADDRESS={address})" if os.environ.get("RAY_ADDRESS") else f" ({address})"
    if (fault := _unreachable(address)) is not None:
        raise ConfigError(f"{named}: {fault}")
    require_package("ray", "ray")
    _use_token()
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ConfigError(f"{named}: {_reason(str(error))}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _found() -> str:
    """The address that Ray takes for `auto`: RAY_ADDRESS, or that of a cluster which was started on this machine.

    Raises:
        ConfigError: there is none.
    """
    from ray._private.services import get_ray_address_from_environment

    try:
        return str(get_ray_address_from_environment("auto", None))
    except ConnectionError as error:
        raise ConfigError(f"--ray auto: {_reason(str(error))}") from None


def _unreachable(address: str) -> str | None:
    """Why no cluster can be at an address; Ray itself would try for minutes, or without an end."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) > 65535:
        return (
            "give HOST:PORT of the cluster's head as `ray start` prints it, or auto, and run this on one of its nodes"
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS) as connection:
            connection.sendall(PREFACE)
            answer = connection.recv(len(SETTINGS))
    except OSError as error:
        reason = error.strerror or str(error)
        return f"nothing answers there ({reason}): start a cluster with `ray start --head`, or name its head"
    if answer[3:4] != SETTINGS[3:4]:
        return "what answers there is no cluster's head: name the port that `ray start` prints, not its dashboard's"
    return None


def _use_token() -> None:
    """Show the token that this user has, as `ray start` asks for it then; a driver has to be told to."""
    given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if given or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _reason(text: str) -> str:
    """What Ray says of a cluster that it cannot use, in one line."""
    words = " ".join(text.split())
    if "Version mismatch" in words:
        versions = words.partition("Version mismatch: ")[2].replace(" This process", "; this process")
        return f"{versions}: give all nodes and this machine the same Python and Ray"
    if "Could not find any running Ray instance" in words:
        return "no cluster runs on this machine: start one with `ray start --head`, or name its head as HOST:PORT"
    return f"{words[:300]}; run this on a node of the cluster, with the token that it asks for"


class Needs(NamedTuple):
    """What a node has to have."""

    version: str
    token: str
    """What the file `.shared` of each folder holds."""
    folders: tuple[Path, ...]
    """Folders that all nodes share."""
    paths: tuple[Path, ...]
    packages: tuple[str, ...]

    @classmethod
    def of(cls, folders: Sequence[Path], paths: Sequence[Path], packages: Sequence[str]) -> "Needs":
        """This version, folders that are made if they are not there, and other paths and packages."""
        token = uuid.uuid4().hex
        for folder in folders:
            write_text(folder / SEEN, token)
        return cls(mosa_deploy.__version__, token, tuple(folders), tuple(dict.fromkeys(paths)), tuple(packages))

    def lacking(self) -> list[str]:
        """What this machine lacks of it."""
        faults = []
        if mosa_deploy.__version__ != self.version:
            faults.append(f"has mosa-deploy {mosa_deploy.__version__}, not {self.version}: install the same")
        faults += [f"has no package {name}" for name in self.packages if find_spec(name) is None]
        for folder in self.folders:
            try:
                shared = (folder / SEEN).read_text() == self.token
            except OSError:
                shared = False
            if not shared:
                faults.append(f"does not see {folder}: name a folder on storage that all nodes share")
        return faults + [f"does not see {path}" for path in self.paths if not path.exists()]


def prepare(ray: Any, needs: Needs) -> None:
    """Ask every node whether it has what it needs; nodes that come later have to be asked when they have work.

    Raises:
        ConfigError: nodes lack something; lists everything at once.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    ask = ray.remote(num_cpus=0, max_retries=0)(_lacking)
    for node in ray.nodes():
        if node["Alive"]:
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[node["NodeManagerAddress"]] = ask.options(scheduling_strategy=where).remote(needs)
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=NODE_SECONDS)
    faults = []
    for name, answer in asked.items():
        try:
            lacking = ray.get(answer, timeout=0)
        except ray.exceptions.GetTimeoutError:
            lacking = [f"has not answered within {NODE_SECONDS:.0f} s"]
        except (ray.exceptions.RayError, ImportError, RuntimeError) as error:
            last = str(error).strip().splitlines()[-1:]
            lacking = [
                f"cannot run mosa-deploy {mosa_deploy.__version__} ({''.join(last)}): install it there, with its extras"
            ]
        faults += [f"the node {name} {fault}" for fault in lacking]
    if faults:
        raise ConfigError(f"--ray: {'; '.join(faults)}")
    if float(ray.cluster_resources().get("CPU", 0)) < 1:
        print("the cluster has no cores yet: waiting for its nodes", flush=True)


def _lacking(needs: Needs) -> list[str]:
    return needs.lacking()
