"""`mosa score` with tasks that adapt the last blocks alone: the blocks before run once per image."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pyarrow.parquet
import pytest
from onnx import helper, numpy_helper

from mosa_deploy.backbones.names import EMBEDDED
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.graph_index import add_graph_file
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.bundles.store_layout import StoreLayout
from serving import score_tasks
from serving.score_cut import CutLane, where_to_cut
from serving.score_tasks import TaskSet, opened
from serving.settings import Settings
from tests.support import eva
from tests.support.quantised import write_int8, write_proof
from tests.support.runs import Once
from tests.support.score import SETTINGS, run
from tests.support.tasks import TaskMaker, Traced

# Each of two lanes: tasks in the last two blocks, in the last one, in all of them; and a probe, which adapts none.
TASKS = {"two": ("mosa", 2), "one": ("mosa", 1), "every": ("mosa", None), "none": ("linear", None), "rank": ("lora", 2)}
RANKS = {"more": ("lora", 1)}


@pytest.fixture(scope="module")
def late(once: Once, traced_store: Traced) -> Path:
    """A store with tasks that adapt different blocks; tests must not change it."""

    def make(root: Path) -> None:
        maker = TaskMaker(Path(shutil.copytree(traced_store(EMBEDDED), root)))
        for seed, (name, (method, blocks)) in enumerate((TASKS | RANKS).items()):
            maker.store(maker.make(name, seed, method=method, blocks=blocks))

    return once("late", make)


@pytest.fixture
def images(maker: TaskMaker, tmp_path: Path) -> Path:
    """A folder of images."""
    (tmp_path / "images").mkdir()
    for i, content in enumerate(maker.images[:6]):
        (tmp_path / "images" / f"{i}.png").write_bytes(content)
    return tmp_path / "images"


TaskAnswers = dict[str, Array]


def settings(root: Path, **more: object) -> Settings:
    """Those of a run."""
    return Settings.model_validate({**SETTINGS, "artifacts": str(root), **more})


def cuts(tasks: TaskSet) -> list[list[list[str]]]:
    """The tasks of each lane that was cut, by slot."""
    names = []
    for each in tasks.passes:
        if isinstance(each.lane, CutLane):
            names.append([[task.version.record.task for task in slot] for slot in each.tasks])
    return names


def answers(tasks: TaskSet, maker: TaskMaker) -> TaskAnswers:
    """The probabilities (n, K) that each task gives for the maker's images."""
    asked = tasks.ask([np.stack([maker.preprocess.read(content) for content in maker.images])])
    return {task.version.record.task: scores for task, scores in tasks.answers(asked)}


def by_both(root: Path, maker: TaskMaker, names: Sequence[str], **more: object) -> tuple[TaskAnswers, TaskAnswers]:
    """What tasks answer by a lane that was cut, and by whole passes."""
    with opened(settings(root, **more), names) as tasks:
        assert cuts(tasks) == [[[name] for name in names]]
        cut = answers(tasks, maker)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(score_tasks, "where_to_cut", lambda firsts: 0)
            whole = TaskSet(tasks.tasks, tasks.lanes, tasks.pool, tasks.streams)
        assert not cuts(whole)
        return cut, answers(whole, maker)


@pytest.mark.parametrize(
    ("firsts", "block"),
    [
        ([8, 8, 8], 8),
        ([8, 10], 8),
        # Nine tasks that share eleven blocks save more than ten that share one.
        ([1, *[11] * 9], 11),
        ([0, 0, 12], 0),
        ([8], 0),
        ([0, 8, 9], 8),
    ],
)
def test_a_graph_is_cut_where_that_saves_most(firsts: Sequence[int], block: int) -> None:
    assert where_to_cut(firsts) == block


def test_tasks_share_the_blocks_that_none_of_them_adapts(late: Path) -> None:
    with opened(settings(late), list(TASKS | RANKS)) as tasks:
        assert cuts(tasks) == [[["two"], ["one"], ["none"]], [["rank"], ["more"]]]
        # `every` alone runs by itself.
        assert len(tasks.passes) == 3


def test_a_cut_changes_no_row(late: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = TaskMaker(late)
    run(maker, images, tmp_path / "cut", tasks="all")
    monkeypatch.setattr(score_tasks, "where_to_cut", lambda firsts: 0)
    run(maker, images, tmp_path / "whole", tasks="all")
    cut, whole = (pyarrow.parquet.read_table(tmp_path / name) for name in ("cut", "whole"))
    assert cut.num_rows == len(TASKS | RANKS) * 6
    assert cut.equals(whole)


def test_rotary_positions_are_read_by_both_parts(traced_store: Traced, tmp_path: Path) -> None:
    maker = TaskMaker(Path(shutil.copytree(traced_store(eva.NAME), tmp_path / "store")), eva.NAME)
    for seed, name in enumerate(("a", "b")):
        maker.store(maker.make(name, seed, blocks=1))
    cut, whole = by_both(maker.root, maker, ["a", "b"])
    for name in cut:
        np.testing.assert_array_equal(cut[name], whole[name])


def test_a_graph_in_int8_is_cut_too(late: Path, tmp_path: Path) -> None:
    maker = TaskMaker(Path(shutil.copytree(late, tmp_path / "store")))
    one, two = (Archive.of(StoreLayout(late).task(name)) for name in ("one", "two"))
    file = write_int8(maker.root, maker, two)
    for archive in (one, two):
        write_proof(maker.root, archive, [file, file.with_name("shared.onnx")], {"fp32": 0.9, "int8": 0.9})
    cut, whole = by_both(maker.root, maker, ["two", "one"], precision="int8")
    for name in cut:
        np.testing.assert_array_equal(cut[name], whole[name])


def test_a_graph_that_cannot_be_cut_runs_whole(late: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    maker = TaskMaker(Path(shutil.copytree(late, tmp_path / "store")))
    (path,) = maker.root.glob("backbones/*/shared.onnx")
    read_images_again(path)
    add_graph_file(path)
    with opened(settings(maker.root), ["two", "one"]) as tasks:
        assert not cuts(tasks)
        found = answers(tasks, maker)
    for name, scores in found.items():
        offline = maker.offline(Archive.of(StoreLayout(late).task(name)))
        np.testing.assert_allclose(scores, offline, atol=1e-4)
    (line,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert line.startswith("every task runs the whole graph: ")
    assert line.endswith("shared.onnx cannot be cut: nothing runs before the blocks that differ")


def read_images_again(path: Path) -> None:
    """Add to the features of a graph 0 times the mean of the images, so that its end reads the images too."""
    model = onnx.load(path)
    graph, features = model.graph, model.graph.output[0].name
    for node in graph.node:
        node.output[:] = ["again.before" if name == features else name for name in node.output]
    weights = {"again.axes": np.array([1, 2, 3]), "again.zero": np.zeros(1, dtype=np.float32)}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    graph.node.extend(
        [
            helper.make_node("ReduceMean", [graph.input[0].name, "again.axes"], ["again.mean"]),
            helper.make_node("Mul", ["again.mean", "again.zero"], ["again.nothing"]),
            helper.make_node("Flatten", ["again.nothing"], ["again.column"]),
            helper.make_node("Add", ["again.before", "again.column"], [features]),
        ]
    )
    onnx.save(model, path)
