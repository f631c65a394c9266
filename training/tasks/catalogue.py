"""All tasks as a list: what they are, whether their images are here, how to get them, and what others reached.

python -m training.tasks
python -m training.tasks --data-dir FOLDER --only vtab
"""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mosa_deploy.errors import ConfigError, DataError, unknown_name
from mosa_deploy.utils.command_line import parse
from mosa_deploy.utils.markdown import table
from training.tasks import BENCHMARKS, OWN_IMAGES, TASKS
from training.tasks.benchmark import Benchmark, data_root
from training.tasks.published import PUBLISHED, SOURCES

GROUPS = {
    "own": "tasks that come with the package, or read images of your own",
    "fgvc": "fine-grained visual classification, in VPT's splits",
    "vtab": "VTAB-1k",
    "gicd": "general image classification",
}

NO_FIGURE = "no figure verified"

WIDTH = 118
"""Characters in a line of text."""


@dataclass(frozen=True)
class CatalogueConfig:
    """List the tasks: classes, images, licence, whether the images are here, how to get them, published accuracy."""

    data_dir: Path | None = None
    """Folder that holds the benchmarks, each in its folder. Default: `data` in the cache folder (MOSA_HOME)."""
    only: str | None = None
    """own, fgvc, vtab or gicd: list these alone."""

    def __post_init__(self) -> None:
        """Raises ConfigError if there is no such group."""
        if self.only is not None and self.only not in GROUPS:
            raise ConfigError(unknown_name("group", self.only, GROUPS))


def print_catalogue(arguments: list[str] | None = None) -> None:
    """Print the list.

    Raises:
        MosaError: there is no such group or folder.
    """
    config = parse(CatalogueConfig, "python -m training.tasks", arguments)
    if config.data_dir is not None and not config.data_dir.is_dir():
        raise DataError(f"--data-dir {config.data_dir}: no such folder; give the one that holds the benchmarks")
    print("\n".join(lines(config)))


def lines(config: CatalogueConfig) -> Iterator[str]:
    """The lines of the list, group by group."""
    groups = [config.only] if config.only else [*GROUPS]
    for group in groups:
        yield from (f"{group}: {GROUPS[group]}", "")
        tasks = [task for task in BENCHMARKS if task.group == group]
        yield from _benchmarks(tasks, config.data_dir) if tasks else _own()
        yield ""
    yield from textwrap.wrap(
        f"Benchmarks are looked for in {config.data_dir or data_root()}, and nothing is downloaded. Licences are what"
        " the pages of the data sets say: read them before use.",
        WIDTH,
    )


def _own() -> Iterator[str]:
    """The tasks that are not benchmarks; their modules say the rest."""
    rows = []
    for name, task in TASKS.items():
        if isinstance(task, Benchmark):
            continue
        said = (type(task).__doc__ or "").split("\n")[0]
        where = (
            "present" if name in OWN_IMAGES else "from --data-dir" if name != "eurosat" else "--data-dir or download"
        )
        rows.append((name, where, said))
    yield table(("task", "images", "what it is"), rows)


def _benchmarks(tasks: Sequence[Benchmark], data_dir: Path | None) -> Iterator[str]:
    absent = [task for task in tasks if not task.is_present(data_dir)]
    head = ("task", "classes", "train", "validation", "test", "licence", "images", "published accuracy")
    rows = [
        (
            *(task.name, task.classes, *(f"{count:,}" for count in task.counts), task.licence),
            *("missing" if task in absent else "present", figures(task)),
        )
        for task in tasks
    ]
    yield table(head, rows, align="lrrrrlll")
    source = SOURCES.get(tasks[0].group)
    said = f"{source.name}, {source.table}; {source.protocol}" if source else NO_FIGURE
    yield from ("", *textwrap.wrap(f"Published: {said}.", WIDTH))
    yield from how_to_get(absent)


def how_to_get(tasks: Iterable[Benchmark]) -> Iterator[str]:
    """How to get the images of these tasks, and into which folders they go."""
    ways = dict[str, list[Benchmark]]()
    for task in tasks:
        ways.setdefault(task.source, []).append(task)
    for way, those in ways.items():
        yield from textwrap.wrap(f"To get {', '.join(task.name for task in those)}: {way}.", WIDTH)
        for task in those:
            yield f"  {task.place}/ holds {' or '.join(reader.layout for reader in task.readers)}"


def figures(task: Benchmark) -> str:
    """The published accuracies between which methods lie: `linear 87.5, full 95.7, VPT-Deep 96.1`."""
    known = PUBLISHED.get(task.name)
    if not known:
        return NO_FIGURE
    tuned = {method: figure for method, figure in known.items() if method not in ("full", "linear")}
    top = max(tuned, key=tuned.__getitem__)
    return f"linear {known['linear']:.1f}, full {known['full']:.1f}, {top} {tuned[top]:.1f}"
