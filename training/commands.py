"""The subcommands of `mosa` in this package. Each imports its code only after its arguments have been checked."""

from collections.abc import Sequence

from mosa_deploy.utils.folders import require_temporary


def tune(arguments: Sequence[str], prog: str) -> None:
    """Tune one task's adapter and head on a frozen backbone."""
    from training.arguments import tune_config

    config = tune_config(arguments, prog)
    require_temporary()
    from training.tune import tune

    tune(config)


def backbone(arguments: Sequence[str], prog: str) -> None:
    """List the backbones that are here, or get one without a model hub."""
    from training.backbone import backbone

    backbone(arguments, prog)


def evaluate(arguments: Sequence[str], prog: str) -> None:
    """Measure a task on its test set: accuracy, also balanced, macro-F1, likelihood and calibration error."""
    from training.arguments import evaluate_config

    config = evaluate_config(arguments, prog)
    from training.evaluate import print_evaluation

    print_evaluation(config)


def compare(arguments: Sequence[str], prog: str) -> None:
    """Compare methods on several tasks, with equal numbers of trials and several seeds."""
    from training.arguments import compare_config

    config = compare_config(arguments, prog)
    require_temporary()
    from training.compare import print_comparison

    print_comparison(config)


def fleet(arguments: Sequence[str] | None, prog: str) -> None:
    """Tune, evaluate, export and deploy every task of a file, several at a time."""
    from training.arguments import fleet_config

    config = fleet_config(arguments, prog)
    require_temporary()
    from training.fleet.fleet import print_fleet

    print_fleet(config)
