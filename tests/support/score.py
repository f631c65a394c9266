"""Archives for `mosa score`, and what a run of it leaves."""

import csv
import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from serving.commands import score
from serving.score_output import UNREADABLE
from serving.settings import variable
from tests.support.tasks import TaskMaker

SETTINGS = {"threads": 1, "max_batch": 4, "runtime": "onnxruntime-cpu"}

Row = tuple[str, str, str, float]
"""Task, file, class and score."""


def write_tar(path: Path, contents: Mapping[str, bytes]) -> Path:
    """A tar file of these members."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_parquet(path: Path, contents: Sequence[bytes | None]) -> Path:
    """A Parquet file with encoded images as data sets have them: bytes in a struct, with a path beside them."""
    path.parent.mkdir(exist_ok=True)
    rows = [{"bytes": content, "path": None} for content in contents]
    kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    table = pyarrow.table({"label": list(range(len(rows))), "image": pyarrow.array(rows, kind)})
    pyarrow.parquet.write_table(table, path, row_group_size=4)
    return path


def run(maker: TaskMaker, images: Path | str, out: Path, *more: str, tasks: str = "birds,fields") -> None:
    """Score by the tasks of the maker's store, decoding in this process.

    What is opened runs every size of a batch once, so there are few.
    """
    given = ["--store", maker.root, "--tasks", tasks, "--images", images, "--out", out]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(variable(name), str(value))
        score([*map(str, given), *(() if "--workers" in more else ("--workers", "0")), *more], "mosa score")


DEADLY = (13, 17)
"""The size of an image at which processes die, if the folder `deadly` is on their path."""


def deadly(folder: Path) -> Path:
    """A folder for the path of Python by which every process kills itself when it decodes an image of that size."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, signal\n"
        "from PIL.ImageFile import ImageFile\n"
        "load = ImageFile.load\n"
        "def loaded(self):\n"
        f"    if self.size == {DEADLY}:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return load(self)\n"
        "ImageFile.load = loaded\n"
    )
    return folder


def rows(out: Path) -> list[Row]:
    """The rows of a run, sorted by task and file."""
    table = pyarrow.parquet.read_table(out).to_pylist()
    return sorted((row["task"], row["file"], row["class"], row["score"]) for row in table)


def files(out: Path) -> list[str]:
    """The files of answers, as paths below the folder of the run."""
    return sorted(str(path.relative_to(out)) for path in out.rglob("*.parquet"))


def unreadable(out: Path) -> list[list[str]]:
    """The images without answers, and why."""
    with (out / UNREADABLE).open(newline="") as handle:
        return list(csv.reader(handle))[1:]
