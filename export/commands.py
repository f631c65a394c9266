"""The subcommands of `mosa` in this package. Each imports its code only after its arguments have been checked."""

from collections.abc import Sequence

from mosa_deploy.utils.folders import require_temporary


def export(arguments: Sequence[str], prog: str) -> None:
    """Merge and fold a tuned task, and write the graphs that are served."""
    from export.arguments import export_config

    config = export_config(arguments, prog)
    require_temporary()
    from export.export import export

    export(config)


def convert(arguments: Sequence[str], prog: str) -> None:
    """Turn a LoRA adapter of PEFT or a timm checkpoint into a bundle."""
    from export.arguments import convert_config

    config = convert_config(arguments, prog)
    require_temporary()
    from export.convert import convert

    convert(config)


def latency(arguments: Sequence[str], prog: str) -> None:
    """Time folded, unfolded and shared graphs against the plain backbone."""
    from export.arguments import latency_config

    config = latency_config(arguments, prog)
    from export.latency import print_latency

    print_latency(config)
