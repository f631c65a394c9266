"""Write what came of a fleet: `fleet.md` and `fleet.html`; the first is what the terminal shows too."""

from collections.abc import Sequence
from pathlib import Path

from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import provenance
from training.fleet.page import page
from training.fleet.rows import Beside, Row
from training.fleet.words import (
    ALIGN,
    ALIGN_BESIDE,
    HEAD,
    HEAD_BESIDE,
    cells_beside,
    cells_of,
    conclusion,
    failure,
    summary,
)

REPORT, PAGE = "fleet.md", "fleet.html"


def tables(rows: Sequence[Row], beside: Sequence[Beside]) -> str:
    """The tables in Markdown."""
    parts = [table(HEAD, map(cells_of, rows), ALIGN)]
    if beside:
        parts += [table(HEAD_BESIDE, map(cells_beside, beside), ALIGN_BESIDE), conclusion(beside)]
    return "\n\n".join(parts)


def write_report(out: Path, rows: Sequence[Row], beside: Sequence[Beside]) -> None:
    """Write `fleet.md` and `fleet.html`."""
    faults = "\n".join(f"- {failure(row)}" for row in rows if row.fault)
    made = provenance("training.fleet")
    parts = [
        "# Fleet",
        made,
        f"{summary(rows)}.",
        tables(rows, beside),
        *([f"## Failed\n\n{faults}"] if faults else []),
    ]
    write_text(out / REPORT, "\n\n".join(parts) + "\n")
    write_text(out / PAGE, page(rows, beside, made))
