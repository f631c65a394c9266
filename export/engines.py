"""Build engines from ONNX files, through one interface with two backends.

tensorrt       builds for this machine's GPU; a timing cache makes the second build fast
tensorrt_rtx   builds for any known compute capability, without a GPU; kernels are compiled when an engine is opened
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

from mosa_deploy.errors import ConfigError, ProviderError, unknown_name
from mosa_deploy.runtimes.cuda import device_capability
from mosa_deploy.runtimes.names import Precision
from mosa_deploy.runtimes.tensorrt_library import INSTALL, Library, installed, load_library
from mosa_deploy.utils.files import write_bytes

IMAGES, SLOTS = "images", "slots"


@dataclass(frozen=True)
class BankLimits:
    """The largest number of slots and the largest bottleneck of the banks that a shared engine accepts."""

    slots: int = 64
    bottleneck: int = 64


@dataclass(frozen=True)
class Request:
    """An engine to build."""

    onnx: Path
    precision: Precision
    batch_sizes: tuple[int, ...]
    capability: str
    bank: BankLimits


class Backend(Protocol):
    """Builds engines with one library."""

    library: Library
    version: str

    def target(self, wanted: str | None) -> str:
        """The compute capability to build for: `wanted`, else that of this machine's GPU.

        Raises:
            ConfigError: it is unknown, or it is not given and there is no GPU.
        """
        ...

    def build(self, request: Request) -> bytes:
        """Build an engine and return its bytes.

        Raises:
            ProviderError: the library refuses the graph.
        """
        ...


class TensorRt:
    """NVIDIA's library. It times kernels on this machine's GPU, so it builds for that one only."""

    library: Library = "tensorrt"

    def __init__(self, cache: Path) -> None:
        """`cache` is the file of kernel timings, which the first build creates."""
        self.trt, self.cache = load_library("tensorrt"), cache
        self.version = str(self.trt.__version__)

    def target(self, wanted: str | None) -> str:
        """See `Backend.target`."""
        here = device_capability()
        if here is None:
            raise ConfigError(
                "tensorrt builds on the GPU that runs the engine, and there is none: add --engine-backend tensorrt_rtx"
            )
        if wanted not in (None, here):
            raise ConfigError(
                f"--compute-capability {wanted}: tensorrt builds for the GPU that is here, known: {here}; others with"
                " --engine-backend tensorrt_rtx"
            )
        return here

    def build(self, request: Request) -> bytes:
        """See `Backend.build`."""

        def configure(config: Any) -> None:
            timings = self.cache.read_bytes() if self.cache.is_file() else b""
            # Timings of another version or GPU are refused: start with an empty cache.
            cache = config.create_timing_cache(timings)
            if cache is None or not config.set_timing_cache(cache, False):
                config.set_timing_cache(config.create_timing_cache(b""), False)

        engine, config = build_engine(self.trt, self.library, request, configure)
        write_bytes(self.cache, bytes(config.get_timing_cache().serialize()))
        return engine


class TensorRtRtx:
    """TensorRT for RTX. It builds for any given compute capability, and times no kernels."""

    library: Library = "tensorrt_rtx"

    def __init__(self) -> None:
        self.trt = load_library("tensorrt_rtx")
        self.version = str(self.trt.__version__)

    def target(self, wanted: str | None) -> str:
        """See `Backend.target`."""
        names = (name.lower() for name in self.trt.ComputeCapability.__members__ if name.startswith("SM"))
        known = sorted(names, key=lambda name: int(name[2:]))
        chosen = wanted or device_capability()
        listed = f"known to tensorrt_rtx {self.version}: {', '.join(known)}"
        if chosen is None:
            raise ConfigError(f"no GPU is here to build for: name one with --compute-capability; {listed}")
        if chosen not in known:
            raise ConfigError(f"unknown --compute-capability {chosen}; {listed}")
        return chosen

    def build(self, request: Request) -> bytes:
        """See `Backend.build`."""

        def configure(config: Any) -> None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(self.trt.ComputeCapability.__members__[request.capability.upper()], 0)

        return build_engine(self.trt, self.library, request, configure)[0]


def choose_backend(name: str | None, cache: Path) -> Backend:
    """The backend of that name; without a name, an installed one, `tensorrt` first.

    Raises:
        ConfigError: the name is unknown.
        ProviderError: the library, or without a name any library, is not installed.
    """
    here = installed()
    if name is None and not here:
        raise ProviderError(f"no TensorRT is installed: {INSTALL}")
    match name or here[0]:
        case "tensorrt":
            return TensorRt(cache)
        case "tensorrt_rtx":
            return TensorRtRtx()
        case unknown:
            raise ConfigError(unknown_name("--engine-backend", unknown, get_args(Library)))


def build_engine(trt: Any, library: str, request: Request, configure: Any) -> tuple[bytes, Any]:
    """Parse the graph and build it with one profile per batch size; returns the engine and the builder's config.

    Raises:
        ProviderError: the library cannot read or build the graph.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(request.onnx.read_bytes()):
        reasons = [" ".join(str(parser.get_error(i).desc()).split()) for i in range(parser.num_errors)]
        raise ProviderError(f"{library} cannot read {request.onnx.name}: {'; '.join(reasons)}; try another --precision")
    config = builder.create_builder_config()
    configure(config)
    if request.precision == "fp32":
        # TF32 would round the factors of products to eleven bits, as coarse as fp16.
        config.clear_flag(trt.BuilderFlag.TF32)
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    for size in request.batch_sizes:
        profile = builder.create_optimization_profile()
        for tensor in inputs:
            profile.set_shape(tensor.name, *shape_range(tensor.name, tuple(tensor.shape), size, request.bank))
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ProviderError(
            f"{library} cannot build {request.onnx.name} for {request.capability}: see its messages above"
        )
    return bytes(engine), config


def strongly_typed(trt: Any) -> int:
    """The network flag for strong typing. Versions in which every network is strongly typed may have no flag."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def shape_range(name: str, shape: Sequence[int], size: int, bank: BankLimits) -> tuple[tuple[int, ...], ...]:
    """The smallest, the optimal and the largest shape of one input. Dimensions of -1 in `shape` vary.

    Images (B, 3, H, W) and slots (B,) have exactly `size` samples. A bank's first dimension is the number of slots; any
    other that varies is the bottleneck.
    """
    if name in (IMAGES, SLOTS):
        return ((size, *shape[1:]),) * 3
    limits = [bank.slots, *[bank.bottleneck] * (len(shape) - 1)]
    return tuple(
        tuple(pick(limit) if length == -1 else length for length, limit in zip(shape, limits, strict=True))
        for pick in (lambda limit: 1, lambda limit: min(limit, 16), lambda limit: limit)
    )
