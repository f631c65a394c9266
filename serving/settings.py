"""The service's settings. It reads them from the environment once, when it starts."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mosa_deploy.errors import ConfigError
from mosa_deploy.runtimes.names import PrecisionSetting, RuntimeSetting
from mosa_deploy.utils.processes import cores
from mosa_deploy.utils.variables import OTHERS, PREFIX, unread

SECRET = ("api_keys", "admin_keys")

LARGEST_BATCH = 32

ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s*]+")


def _split(value: Any) -> Any:
    """Split a variable that holds a list, separated by commas."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _origins(values: tuple[str, ...]) -> tuple[str, ...]:
    """Origins as browsers send them; ValueError names one that no browser would send."""
    found = tuple(value.lower().rstrip("/") for value in values)
    for value in found:
        if value not in ("*", "null") and not ORIGIN.fullmatch(value):
            raise ValueError(f"'{value}' is no origin: give * or one like https://example.com, without a path")
    return found


Listed = Annotated[tuple[str, ...], BeforeValidator(_split)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseModel):
    """Each field is the variable `MOSA_<FIELD>`. Keys may also come from the file `MOSA_<FIELD>_FILE`, one per line."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    artifacts: str = "artifacts"
    """The store: a folder, or a URL that fsspec opens."""
    runtime: RuntimeSetting = "auto"
    """What runs the graphs. `tensorrt` uses the engines that fit this machine, and ONNX Runtime for other graphs.
    `auto` chooses `tensorrt` if it is installed and an NVIDIA GPU is present, else ONNX Runtime: on CUDA if that works,
    else on the CPU."""
    precision: PrecisionSetting = "auto"
    """What graphs are computed in. A task for which it is not proved stays in fp32, and `GET /v1/tasks` says why.
    `auto` takes whatever answers fastest on this machine, of the files that the export wrote."""
    max_accuracy_loss: Annotated[float, Field(ge=0, le=100)] = 0.3
    """By how many points the accuracy of a task may be lower in int8 than in fp32, on the validation images that travel
    with it."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Cores for one inference; 0 takes all."""
    workers: Count = 1
    """Processes that speak HTTP and decode images; one of them also infers."""
    decoders: Annotated[int, Field(ge=0)] = 0
    """Threads per process that decode images; 0 takes one for every two of its share of the cores, and at least 2."""

    max_batch: Annotated[int, Field(ge=0)] = 0
    """The most images that go through a graph at once. 0 takes 32 and, on a CPU, measures when a graph is opened which
    sizes of batches take longer per image than smaller ones, and are left out, and whether cores run streams."""
    max_wait_ms: Annotated[float, Field(ge=0)] = 2.0
    """How long an image waits for others before its batch starts."""
    queue: Count = 512
    """The most images that wait; more are refused with 503."""
    requests: Count = 256
    """The most requests in flight per process; more are refused with 503."""
    deadline_s: Seconds = 30.0
    """How long a request may take before it is answered with 504; a change of tasks has 30 seconds more."""
    body_s: Seconds = 30.0
    """How long a request's body may take to arrive before it is answered with 408."""
    drain_s: Seconds = 30.0
    """How long requests in flight may take after SIGTERM before they fail."""

    active: Count = 256
    """The most tasks of the shared lane that are loaded at once; the least recently used makes room for another."""
    sessions: Count = 8
    """The most tasks of the folded and unfolded lanes together; each of them holds a backbone of its own."""
    prefetch: Annotated[int, Field(ge=0)] = 256
    """Tasks that are loaded at start, pinned ones first. Others are loaded when they are first asked for."""
    folded: Listed = ()
    """Tasks that are served by a folded graph of their own instead of the shared graph; `*` means all."""

    versions: Annotated[int, Field(ge=2)] = 5
    """The most versions of a task that the store keeps for a rollback, the served one included."""

    promotion_margin: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """By how much the accuracy of a new version may be lower than that of the served one, on the labelled images of an
    upload. An upload's `margin` replaces it."""

    drift_window: Annotated[int, Field(ge=0)] = 256
    """Images of a task after which its drift is measured; 0 measures none."""

    max_upload: Count = 10 << 20
    """The most bytes of a request's body; more are refused with 413."""
    max_pixels: Count = 50_000_000
    """The most pixels of an image, checked before it is decoded; more are refused with 400."""
    max_images: Count = 64
    """The most images, and answers, of one request."""

    cors_origins: Annotated[Listed, AfterValidator(_origins)] = ()
    """The sites whose pages may ask from a browser, such as `https://example.com`; `*` means all. Keys are asked for
    there too."""

    api_keys: Listed = ()
    """The keys that may ask; everybody may if there are none."""
    admin_keys: Listed = ()
    """The keys that may change tasks; nobody may if there are none."""

    @property
    def streams(self) -> int:
        """The most batches that run at once on a CPU."""
        return min(self.threads or cores(), self.largest_batch)

    @property
    def largest_batch(self) -> int:
        """The most images that go through a graph at once."""
        return self.max_batch or LARGEST_BATCH

    @classmethod
    def from_environment(cls) -> Self:
        """Read the variables that are set.

        Raises:
            ConfigError: a variable cannot be read; the message names all such variables.
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
        """All settings in one line; keys are only counted."""
        values = self.model_dump()
        for name in SECRET:
            values[name] = f"{len(values[name])} given"
        return " ".join(f"{variable(name)}={_joined(value)}" for name, value in values.items())


def variable(name: str) -> str:
    """The name of a field's environment variable."""
    return f"{PREFIX}{name.upper()}"


def unread_variables() -> list[str]:
    """A line for each variable `MOSA_...` that is set, and that nothing reads."""
    files = [f"{variable(name)}_FILE" for name in SECRET]
    return unread([*map(variable, Settings.model_fields), *files, *OTHERS])


def _fault(name: str, reason: str, given: dict[str, str]) -> str:
    value = "..." if name in SECRET else given[name]
    reason = reason.removeprefix("Value error, ")
    return f"{variable(name)}={value}: {reason[0].lower()}{reason[1:]}"


def _joined(value: object) -> object:
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


def _lines(path: Path, name: str) -> list[str]:
    try:
        # Editors on Windows begin a text with a mark.
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}={path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    if not any(line.strip(", ") for line in lines):
        raise ConfigError(f"{name}={path}: the file holds no key: write one per line, or unset the variable")
    return lines
