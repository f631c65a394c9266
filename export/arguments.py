"""Read and check the arguments of this package's commands, before anything that loads torch is imported."""

from collections.abc import Sequence

from export.options import ConvertConfig, ExportConfig, LatencyConfig
from mosa_deploy.bundles.record import read_record
from mosa_deploy.utils.command_line import parse


def export_config(arguments: Sequence[str] | None = None, prog: str = "python -m export") -> ExportConfig:
    """The options of `export`.

    Raises:
        MosaError: an option that cannot be, or a bundle that is missing or damaged.
    """
    config = parse(ExportConfig, prog, arguments)
    read_record(config.bundle)
    return config


def convert_config(arguments: Sequence[str] | None = None, prog: str = "python -m export.convert") -> ConvertConfig:
    """The options of `convert`.

    Raises:
        ConfigError: an option that cannot be.
    """
    return parse(ConvertConfig, prog, arguments)


def latency_config(arguments: Sequence[str] | None = None, prog: str = "python -m export.latency") -> LatencyConfig:
    """The options of `latency`.

    Raises:
        MosaError: an option that cannot be, or a bundle that is missing or damaged.
    """
    config = parse(LatencyConfig, prog, arguments)
    if config.bundle is not None:
        read_record(config.bundle)
    return config
