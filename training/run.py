"""A run's folder: its files, and which run may write into it.

config.json         the settings that decide the result
search.json         those of a search with --method auto, whose trials are runs in trials/ until it is finished
split.csv           the set, the file and the label of every image
images.sha256       the SHA-256 of every image of train and validation, if they came from the user
unreadable.csv duplicates.csv   the images that cannot be read, or that two sets have in common; only if there are any
adapter.safetensors adapter.json      the bundle, its adapters still split
calibration.npz     256 training images, and 256 validation images with their labels, uint8
metrics.json        metrics on validation
history.csv         one row per epoch
report.md           and its pictures: curves.png confusion.png calibration.png
events.out.tfevents.run   the same for TensorBoard
checkpoint.pt       until the run is finished
evaluation/         what `mosa evaluate` adds: every answer, the worst mistakes, and metrics.json, the last of them
"""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from mosa_deploy.bundles.decode import JpegDecoding
from mosa_deploy.bundles.format_version import Fields
from mosa_deploy.bundles.record import RECORD
from mosa_deploy.errors import ConfigError
from mosa_deploy.utils.files import write_bytes, write_text
from training.config import TuneConfig
from training.loop import Row
from training.run_settings import RUN_FORMAT, differences, parse_settings
from training.tasks.base import Splits

CONFIG, HISTORY, METRICS = RUN_FORMAT.name, "history.csv", "metrics.json"
SEARCH = "search.json"
EVALUATION = "evaluation"
SPLIT, SEEN, UNREADABLE, DUPLICATES = "split.csv", "images.sha256", "unreadable.csv", "duplicates.csv"

BEFORE_TRAINING = (CONFIG, SEARCH, SPLIT, SEEN, UNREADABLE, DUPLICATES)
"""What a run writes before its first epoch."""


def open_run(out: Path, description: str, resume: bool, name: str = CONFIG) -> bool:
    """Claim `out` for the run whose settings, the file `name`, are `description`; returns whether it is finished.

    A folder that holds only `config.json` and what was found in the images belongs to a run that never finished an
    epoch, and may be claimed again.

    Raises:
        ConfigError: `out` holds another run, or `resume` is set and `out` holds none.
    """
    config = out / name
    if resume:
        if not config.is_file():
            raise ConfigError(f"--out {out} holds no run to resume: drop --resume")
        changed = differences(read_settings(out, name), parse_settings(description, name))
        if changed:
            raise ConfigError(
                f"--out {out} holds another run ({'; '.join(changed)}): repeat its flags, or choose --out"
            )
        return (out / RECORD).is_file()
    if out.exists() and (not out.is_dir() or any(path.name not in BEFORE_TRAINING for path in out.iterdir())):
        raise ConfigError(f"--out {out} is not empty: continue with --resume, or choose another --out")
    write_text(config, description)
    return False


def read_settings(folder: Path, name: str = CONFIG) -> Fields:
    """The settings in the `config.json` of a run, or in the file `name`; empty if there is no such file.

    Raises:
        ConfigError: it is damaged, or was written by a newer release.
    """
    path = folder / name
    return parse_settings(path.read_bytes(), str(path)) if path.is_file() else {}


def jpeg_of(config: TuneConfig, folder: Path, name: str = CONFIG) -> JpegDecoding:
    """How JPEGs are decoded: as is asked for; a run that is resumed goes on as it began, unless the other way is named.

    Raises:
        ConfigError: the settings of the run are damaged.
    """
    if config.jpeg != "auto":
        return config.jpeg
    begun = read_settings(folder, name).get("jpeg") if config.resume else None
    return "full" if begun == "full" else "scaled"


def keep_split(out: Path, splits: Splits, resume: bool) -> None:
    """Write `split.csv`, or with `resume` check that the images are still split as it says.

    Raises:
        ConfigError: images were added, removed or renamed since the run began.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(("set", "file", "label"))
    for name, examples in splits.sets().items():
        writer.writerows((name, example.name, splits.name_of(example.label)) for example in examples)
    path, content = out / SPLIT, buffer.getvalue().encode(errors="surrogateescape")
    if resume and path.is_file() and path.read_bytes() != content:
        before, after = (
            set(given.decode(errors="backslashreplace").splitlines()) for given in (path.read_bytes(), content)
        )
        odd = sorted(before ^ after)
        which = f" ({len(odd)} lines differ, such as {odd[0]})" if odd else ""
        raise ConfigError(
            f"--out {out} was begun on other images than these{which}: restore them, or begin anew in another --out"
        )
    write_bytes(path, content)


def read_split(folder: Path) -> dict[str, list[str]] | None:
    """The files of each set in a run's `split.csv`; None if it has none."""
    path = folder / SPLIT
    if not path.is_file():
        return None
    sets: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as handle:
        for row in csv.DictReader(handle):
            sets[row["set"]].append(row["file"])
    return sets


def keep_seen(out: Path, digests: Iterable[tuple[str, str]]) -> None:
    """Write `images.sha256`: the digest and the file of every image that the run sees, as `sha256sum` writes them."""
    lines = [f"{sha256}  {' '.join(file.splitlines())}\n" for sha256, file in digests]
    write_text(out / SEEN, "".join(lines))


def add_seen(folder: Path, out: Path) -> None:
    """Add what the run in another folder saw to the `images.sha256` in `out`."""
    lines = [(each / SEEN).read_text(encoding="utf-8") for each in (out, folder) if (each / SEEN).is_file()]
    write_text(out / SEEN, "".join(lines))


def read_seen(folder: Path) -> set[str]:
    """The digests in a run's `images.sha256`; none if it has no such file."""
    path = folder / SEEN
    return (
        {line.split(" ", 1)[0] for line in path.read_text(encoding="utf-8").splitlines()} if path.is_file() else set()
    )


def read_unreadable(folder: Path) -> set[str]:
    """The files in a run's `unreadable.csv`; none if it has no such file."""
    path = folder / UNREADABLE
    if not path.is_file():
        return set()
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as handle:
        return {row["file"] for row in csv.DictReader(handle)}


def write_history(out: Path, rows: list[Row]) -> None:
    """Write `history.csv`, one row per epoch."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / HISTORY, buffer.getvalue())


def read_history(folder: Path) -> list[Row]:
    """The rows of a run's `history.csv`; none if it has none yet."""
    path = folder / HISTORY
    if not path.is_file():
        return []
    with path.open(newline="") as handle:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(handle)]
