"""What the service reads from its environment, once, at start."""

import os
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mosa_deploy.errors import ConfigError
from mosa_deploy.runtimes.names import RuntimeSetting

PREFIX = "MOSA_"
SECRET = ("api_keys", "admin_keys")


def _split(value: Any) -> Any:
    """A list in one variable: parts between commas."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Listed = Annotated[tuple[str, ...], BeforeValidator(_split)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseModel):
    """Each field is the variable `MOSA_<FIELD>`; keys may also come from the file `MOSA_<FIELD>_FILE`, one a line."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    artifacts: str = "artifacts"
    """The store: a folder, or a URL that fsspec opens."""
    runtime: RuntimeSetting = "auto"
    """`tensorrt` is an engine for each graph that has one that fits, others run by ONNX Runtime. `auto` is that where
    TensorRT and an NVIDIA GPU are here, else ONNX Runtime, with an NVIDIA driver on CUDA."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Cores for one inference; 0 takes all."""
    workers: Count = 1
    """Processes that speak HTTP and decode; one of them owns sessions, banks and the batcher."""
    decoders: Count = 2
    """Threads of each process that decode images."""

    max_batch: Count = 32
    """Images that go through a graph at once."""
    max_wait_ms: Annotated[float, Field(ge=0)] = 2.0
    """How long an image waits for others before its batch starts."""
    queue: Count = 512
    """Images that wait; more are refused with 503."""
    requests: Count = 256
    """Requests in flight in a process; more are refused with 503."""
    deadline_s: Seconds = 30.0
    """After it a request is answered with 504; a change of tasks has 30 seconds more."""
    body_s: Seconds = 30.0
    """How long a request's body may take to arrive; 408 after it."""
    drain_s: Seconds = 30.0
    """How long what has begun may take after SIGTERM; what is left then fails."""

    active: Count = 256
    """Tasks that are loaded at once; the least recently asked goes when another comes."""
    sessions: Count = 8
    """The same for tasks of the folded lane, each of which holds a backbone of its own."""
    prefetch: Annotated[int, Field(ge=0)] = 256
    """Tasks that are loaded at start, pinned ones first; others when they are first asked."""
    folded: Listed = ()
    """Tasks with a session of their own instead of the shared graph; `*` means all."""

    max_upload: Count = 10 << 20
    """Bytes of a request's body; more is refused with 413."""
    max_pixels: Count = 50_000_000
    """Of an image, before it is decoded; more is refused with 400."""
    max_images: Count = 64
    """Images, and answers, of one request."""

    api_keys: Listed = ()
    """Who may ask; everybody if there are none."""
    admin_keys: Listed = ()
    """Who may change tasks; nobody if there are none."""

    @classmethod
    def from_environment(cls) -> Self:
        """Read the variables that are set.

        Raises:
            ConfigError: names every variable that cannot be read.
        """
        given = {name: os.environ[variable(name)] for name in cls.model_fields if variable(name) in os.environ}
        for name in SECRET:
            if path := os.environ.get(f"{variable(name)}_FILE"):
                given[name] = ",".join([given.get(name, ""), *_lines(Path(path), f"{variable(name)}_FILE")])
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            faults = [_fault(str(fault["loc"][0]), fault["msg"], given) for fault in error.errors()]
            raise ConfigError("; ".join(faults)) from None

    def shown(self) -> str:
        """All in one line, keys only counted."""
        values = self.model_dump()
        for name in SECRET:
            values[name] = f"{len(values[name])} given"
        return " ".join(f"{variable(name)}={_plain(value)}" for name, value in values.items())


def variable(name: str) -> str:
    """The environment's name of a field."""
    return f"{PREFIX}{name.upper()}"


def _fault(name: str, reason: str, given: dict[str, str]) -> str:
    value = "..." if name in SECRET else given[name]
    return f"{variable(name)}={value}: {reason[0].lower()}{reason[1:]}"


def _plain(value: object) -> object:
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


def _lines(path: Path, name: str) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}={path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
