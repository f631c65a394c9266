"""A run's folder: what is in it, and who may write it.

config.json         what decides the result
adapter.safetensors adapter.json      the bundle, its adapters still split
calibration.npz     256 training images, uint8
metrics.json        figures on validation
history.csv curves.png
checkpoint.pt       while the run goes on
"""

import csv
import io
from pathlib import Path

import matplotlib

from mosa_deploy.bundle import RECORD
from mosa_deploy.errors import ConfigError
from mosa_deploy.files import replacing, write_text
from training.config import differences
from training.loop import Row

CONFIG, CHECKPOINT, HISTORY = "config.json", "checkpoint.pt", "history.csv"
CURVES, METRICS, CALIBRATION = "curves.png", "metrics.json", "calibration.npz"


def open_run(out: Path, description: str, resume: bool) -> bool:
    """Claim `out` for the run so described. Returns whether it is finished already.

    A folder that holds nothing but `config.json` is a run that never finished an epoch: it may be claimed anew.

    Raises:
        ConfigError: `out` holds another run, or, with `resume`, none.
    """
    config = out / CONFIG
    if resume:
        if not config.is_file():
            raise ConfigError(f"--out {out} holds no run to resume: drop --resume")
        changed = differences(config.read_text(), description)
        if changed:
            raise ConfigError(
                f"--out {out} holds another run ({'; '.join(changed)}): repeat its flags, or choose --out"
            )
        return (out / RECORD).is_file()
    if out.exists() and (not out.is_dir() or any(path.name != CONFIG for path in out.iterdir())):
        raise ConfigError(f"--out {out} is not empty: go on with --resume, or choose another --out")
    write_text(config, description)
    return False


def write_history(out: Path, rows: list[Row]) -> None:
    """`history.csv`, one row an epoch."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / HISTORY, buffer.getvalue())


def draw_curves(out: Path, rows: list[Row], title: str) -> None:
    """`curves.png`: the losses and the validation accuracy over the epochs, or over C for the linear probe."""
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    x = next(iter(rows[0]))
    losses = [name for name in ("cross_entropy", "consistency", "validation_loss") if name in rows[0]]
    figure, axes = plt.subplots(
        1, 2 if losses else 1, figsize=(9 if losses else 5, 3.4), squeeze=False, layout="constrained"
    )
    for name in losses:
        axes[0, 0].plot([row[x] for row in rows], [row[name] for row in rows], label=name.replace("_", " "))
    if losses:
        axes[0, 0].set(xlabel=x, ylabel="loss (nats)", ylim=(0, None))
        axes[0, 0].legend(frameon=False)
    accuracy = [100 * row["validation_accuracy"] for row in rows]
    axes[0, -1].plot([row[x] for row in rows], accuracy, marker="o", markersize=3)
    if x == "epoch":
        for axis in axes.flat:
            axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0, -1].set(xlabel=x, ylabel="validation accuracy (%)", xscale="log" if x == "c" else "linear")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    with replacing(out / CURVES) as aside:
        figure.savefig(aside, format="png", dpi=120)
    plt.close(figure)
