"""Read and check the arguments of this package's commands, before anything that loads torch is imported."""

from collections.abc import Sequence

from export.options import ConvertConfig, ExportConfig, LatencyConfig
from mosa_deploy.bundles.record import read_record
from mosa_deploy.utils.command_line import parse


def export_config(arguments: Sequence[str] | None = None, prog: str = "python -m export") -> ExportConfig:
    """Read the options of `mosa export`.

    Raises:
        MosaError: an option is invalid, or the bundle is missing or damaged.
    """
    config = parse(ExportConfig, prog, arguments)
    read_record(config.bundle)
    return config


def convert_config(arguments: Sequence[str] | None = None, prog: str = "python -m export.convert") -> ConvertConfig:
    """Read the options of `mosa convert`.

    Raises:
        ConfigError: an option is invalid.
    """
    return parse(ConvertConfig, prog, arguments)


def latency_config(arguments: Sequence[str] | None = None, prog: str = "python -m export.latency") -> LatencyConfig:
    """Read the options of `mosa latency`.

    Raises:
        MosaError: an option is invalid, or the bundle is missing or damaged.
    """
    config = parse(LatencyConfig, prog, arguments)
    if config.bundle is not None:
        read_record(config.bundle)
    return config
