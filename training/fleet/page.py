"""`fleet.html`: the results of a fleet as one page that loads nothing."""

from collections.abc import Iterable, Sequence
from html import escape

from training.fleet.rows import Beside, Row
from training.fleet.words import (
    ALIGN,
    ALIGN_BESIDE,
    HEAD,
    HEAD_BESIDE,
    Cells,
    cells_beside,
    cells_of,
    conclusion,
    failure,
    summary,
)

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --paper: #fff; --line: #d5dbe3; --bar: #cfe3f7; --bad: #b3261e }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e8ef; --paper: #14181e; --line: #38424f; --bar: #24425f; --bad: #ff8a80 }
}
body { margin: 2rem auto; max-width: 80rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 2rem }
caption { text-align: left; font-weight: 600; font-size: 1.2rem; padding-bottom: .4rem }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap }
.r { text-align: right; font-variant-numeric: tabular-nums }
tr.failed td { color: var(--bad) }
td.l { white-space: normal; min-width: 7rem }
td:first-child { white-space: nowrap; min-width: 0 }
.bar { min-width: 6rem; background: linear-gradient(var(--bar), var(--bar)) no-repeat left / var(--share) 100% }
small, .fault { overflow-wrap: anywhere }
.fault { color: var(--bad) }
"""


def page(rows: Sequence[Row], beside: Sequence[Beside], made: str) -> str:
    """The page; `made` says what made the results."""
    parts = [f"<p>{escape(summary(rows))}.</p>"]
    if faults := [f"<li class=fault>{escape(failure(row))}</li>" for row in rows if row.fault]:
        parts += ["<ul>", *faults, "</ul>"]
    if beside:
        old_and_new = [_line(cells_beside(pair), ALIGN_BESIDE) for pair in beside]
        parts += [_table("Before and now", HEAD_BESIDE, ALIGN_BESIDE, old_and_new), f"<p>{conclusion(beside)}</p>"]
    head = (*HEAD, "backbone", "where it lies")
    parts.append(_table("Tasks", head, ALIGN + "ll", map(_task, rows)))
    body = "\n".join([*parts, f"<p><small>{escape(made)}</small></p>"])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Fleet</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Fleet</h1>
{body}
</body>
</html>
"""


def _task(row: Row) -> str:
    """A line about a task; accuracies have a bar behind them."""
    shares = dict(zip(("validation", "test"), (row.validation, row.test), strict=True))
    bars = [shares.get(name) for name in HEAD]
    cells = (*cells_of(row), row.backbone, row.folder or row.run or row.log)
    return _line(cells, ALIGN + "ll", [*bars, None, None], "failed" if row.fault else "")


def _table(caption: str, head: Cells, align: str, lines: Iterable[str]) -> str:
    heads = "".join(f'<th scope=col class="{side}">{escape(name)}</th>' for name, side in zip(head, align, strict=True))
    body = "\n".join(lines)
    return (
        f"<div class=wide><table><caption>{escape(caption)}</caption>\n<thead><tr>{heads}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _line(cells: Cells, align: str, bars: Sequence[float | None] = (), kind: str = "") -> str:
    """A line of a table; a cell with a share has a bar as long."""
    line = ""
    for cell, side, share in zip(cells, align, bars or [None] * len(cells), strict=True):
        bar = "" if share is None else f' style="--share: {100 * share:.1f}%"'
        line += f'<td class="{side}{"" if share is None else " bar"}"{bar}>{escape(cell)}</td>'
    return f'<tr class="{kind}">{line}</tr>'
