"""The commands of this package, as `mosa` finds them; each is imported only when its arguments have been checked."""

from collections.abc import Sequence


def export(arguments: Sequence[str], prog: str) -> None:
    """Merge and fold a tuned task, and write the graphs that are served."""
    from export.arguments import export_config

    config = export_config(arguments, prog)
    from export.export import export

    export(config)


def convert(arguments: Sequence[str], prog: str) -> None:
    """Make a bundle of an adapter of PEFT, of a timm checkpoint, or of its head."""
    from export.arguments import convert_config

    config = convert_config(arguments, prog)
    from export.convert import convert

    convert(config)


def latency(arguments: Sequence[str], prog: str) -> None:
    """Time folded, unfolded and shared graphs beside the plain backbone."""
    from export.arguments import latency_config

    config = latency_config(arguments, prog)
    from export.latency import print_latency

    print_latency(config)
