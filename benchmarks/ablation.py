"""Find out what makes MoSA fall behind the dense adapter: `python -m benchmarks.ablation --tasks sprites-location`.

Each variant changes one setting of the preset and is tuned with every seed. They are compared by validation accuracy;
the test sets are not read. Finished runs are kept, so running the same command again continues.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from mosa_deploy.errors import ConfigError, command, unknown_name
from mosa_deploy.utils.files import write_csv, write_text
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import provenance
from training.compare import Cell, carry_out, validation
from training.compared import compared_tasks, preset
from training.config import TuneConfig
from training.options import CompareConfig
from training.trials import Setting, label

MOSA: dict[str, Setting] = {
    "as preset": (),
    "2 experts": (("experts", 2),),
    "8 experts": (("experts", 8),),
    "one pass": (("passes", 1),),
    "no consistency": (("consistency", 0.0),),
    "merge scale learned": (("merge_scale", "learned"),),
    "merge scale 1": (("merge_scale", "1"),),
    "down split": (("share", "up"),),
    "both split": (("share", "none"),),
    "last third dense": (("dense_epochs", 1 / 3),),
}
"""Description -> changes to the preset; `dense_epochs` is a share of the epochs."""


@dataclass(frozen=True)
class Config:
    """Change one setting of the preset at a time."""

    tasks: str = "sprites-location"
    seeds: int = 2
    changes: tuple[str, ...] = tuple(MOSA)
    """Changes to try: any of as preset, 2 experts, 8 experts, one pass, no consistency, merge scale learned, merge
    scale 1, down split, both split, last third dense."""
    longer: tuple[int, ...] = (2, 4)
    """Factors of the preset's number of epochs, tried with MoSA and with the dense adapter."""
    data_dir: Path | None = None
    precision: str = "auto"
    jobs: int = 1
    work: Path = Path("runs/ablation")
    out: Path = Path("benchmarks/results/ablation")


def variants(base: TuneConfig, changes: tuple[str, ...], longer: tuple[int, ...]) -> list[tuple[str, str, Setting]]:
    """(method, description of the change, setting) of every variant."""
    epochs = preset(base).epochs
    found: list[tuple[str, str, Setting]] = [("adapter", "as preset", ())]
    for words in changes:
        if words not in MOSA:
            raise ConfigError(unknown_name("change", words, MOSA))
        setting = MOSA[words]
        found.append(("mosa", words, tuple((k, round(v * epochs) if k == "dense_epochs" else v) for k, v in setting)))
    found += [
        (method, f"{factor} x the epochs", (("epochs", factor * epochs),))
        for factor in longer
        for method in ("adapter", "mosa")
    ]
    return found


@command
def main() -> None:
    """Write `ablation.md` and `ablation.csv`."""
    config = tyro.cli(Config, prog="python -m benchmarks.ablation")
    grid = CompareConfig(
        tasks=config.tasks, data_dir=config.data_dir, precision=config.precision, jobs=config.jobs, out=config.work
    )
    cells = {
        (base.name, method, words): [Cell(base, method, setting, seed) for seed in range(config.seeds)]
        for base in compared_tasks(grid)
        for method, words, setting in variants(base, config.changes, config.longer)
    }
    carry_out(grid, [cell for runs in cells.values() for cell in runs], "ablation")
    found = {key: [validation(cell.folder(config.work))[0] for cell in runs] for key, runs in cells.items()}
    columns = ("task", "method", "change", "setting", "seed", "validation_accuracy")
    runs = [
        (*key, label(cells[key][0].setting), seed, value)
        for key, values in found.items()
        for seed, value in enumerate(values)
    ]
    write_csv(config.out / "ablation.csv", columns, runs)
    rows = []
    for key, values in found.items():
        rows.append((*key, f"{np.mean(values):.4f}", ", ".join(f"{value:.3f}" for value in values)))
    text = table(("task", "method", "change", "validation accuracy", "of each seed"), rows)
    write_text(config.out / "ablation.md", f"# One change at a time\n\n{provenance('benchmarks.ablation')}\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    main()
