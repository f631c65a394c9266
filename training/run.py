"""A run's folder: its files, and which run may write into it.

config.json         the settings that decide the result
adapter.safetensors adapter.json      the bundle, its adapters still split
calibration.npz     256 training images, and 256 validation images with their labels, uint8
metrics.json        metrics on validation
history.csv         one row per epoch
report.md           and its pictures: curves.png confusion.png calibration.png
events.out.tfevents.run   the same for TensorBoard
checkpoint.pt       until the run is finished
"""

import csv
import io
from pathlib import Path

from mosa_deploy.bundles.format_version import Fields
from mosa_deploy.bundles.record import RECORD
from mosa_deploy.errors import ConfigError
from mosa_deploy.utils.files import write_text
from training.config import RUN_FORMAT, differences, parse_settings
from training.loop import Row

CONFIG, CHECKPOINT, HISTORY, METRICS = RUN_FORMAT.name, "checkpoint.pt", "history.csv", "metrics.json"


def open_run(out: Path, description: str, resume: bool) -> bool:
    """Claim `out` for the run whose `config.json` is `description`; returns whether that run is already finished.

    A folder that holds only `config.json` belongs to a run that never finished an epoch, and may be claimed again.

    Raises:
        ConfigError: `out` holds another run, or `resume` is set and `out` holds none.
    """
    config = out / CONFIG
    if resume:
        if not config.is_file():
            raise ConfigError(f"--out {out} holds no run to resume: drop --resume")
        changed = differences(read_settings(out), parse_settings(description, CONFIG))
        if changed:
            raise ConfigError(
                f"--out {out} holds another run ({'; '.join(changed)}): repeat its flags, or choose --out"
            )
        return (out / RECORD).is_file()
    if out.exists() and (not out.is_dir() or any(path.name != CONFIG for path in out.iterdir())):
        raise ConfigError(f"--out {out} is not empty: continue with --resume, or choose another --out")
    write_text(config, description)
    return False


def read_settings(folder: Path) -> Fields:
    """The settings in the `config.json` of a run; empty if there is no such file.

    Raises:
        ConfigError: it is damaged, or was written by a newer release.
    """
    path = folder / CONFIG
    return parse_settings(path.read_bytes(), str(path)) if path.is_file() else {}


def write_history(out: Path, rows: list[Row]) -> None:
    """Write `history.csv`, one row per epoch."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / HISTORY, buffer.getvalue())
