"""The images of a run: streamed or in memory, with what is said about them."""

from dataclasses import replace
from pathlib import Path

import pytest

from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.errors import DataError
from tests.support.images import PREPROCESS, write_jpegs
from training import run
from training.config import TuneConfig
from training.dataset import Data, StreamedDataset, read_dataset
from training.tasks.base import Example, Splits
from training.tasks.folder import Folder
from training.tune import tune
from training.tune_options import ReadOptions, StreamOptions
from training.workers import Workers


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in three sets: one in two of them, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("odd")
    for name in ("train", "validation", "test"):
        write_jpegs(folder / name, {"ash": 4, "oak": 4}, size=24)
    (folder / "train/ash/ash_1.jpg").write_bytes((folder / "test/oak/oak_1.jpg").read_bytes())
    (folder / "validation/oak/oak_2.jpg").write_bytes(b"no image")
    return folder


def read(config: TuneConfig, out: Path) -> Data:
    splits = Folder().splits(config.data_dir, None)
    with Workers(2) as workers:
        data = read_dataset(splits, PREPROCESS, config, out, workers)
        return data.settled()


def test_what_is_said_of_streamed_images_is_what_is_said_of_those_in_memory(odd: Path, tmp_path: Path) -> None:
    config = TuneConfig(task="folder", data_dir=odd, reading=ReadOptions(max_unreadable="1"))
    streaming = StreamOptions(cache=tmp_path / "cache")
    cold, warm = (read(replace(config, streaming=streaming), tmp_path / name).settled() for name in ("cold", "warm"))
    memory = read(config, tmp_path / "memory").settled()
    assert len(memory.remarks) >= 2
    assert cold.remarks == warm.remarks == memory.remarks
    for name in (run.SEEN, run.UNREADABLE, run.DUPLICATES):
        assert (tmp_path / "cold" / name).read_text() == (tmp_path / "memory" / name).read_text()
        assert (tmp_path / "warm" / name).read_text() == (tmp_path / "memory" / name).read_text()


def test_too_many_unreadable_images_are_refused_when_all_are_decoded(odd: Path, tmp_path: Path) -> None:
    config = TuneConfig(task="folder", data_dir=odd, streaming=StreamOptions(cache=tmp_path / "cache"))
    with pytest.raises(
        DataError, match=r"^1 of 24 images are unreadable, listed in .*, and --max-unreadable 1% allows 0"
    ):
        read(config, tmp_path / "out")


def test_sets_of_more_than_a_gigabyte_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSA_HOME", str(tmp_path))
    images = [Example(f"{i}", bytes, i % 2) for i in range(12)]
    large = PREPROCESS.model_copy(update={"size": (4096, 4096)})
    with Workers(1) as workers:
        data = read_dataset(Splits(("ash", "oak"), images, images, [], ""), large, TuneConfig("x"), tmp_path, workers)
    assert isinstance(data, StreamedDataset)
    assert data.train.cached.folder.parent == tmp_path / "images"


def test_a_streamed_run_that_is_interrupted_and_resumed_equals_one_in_memory(
    few: str, few_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streaming = StreamOptions(cache=tmp_path / "cache", workers=2)
    config = TuneConfig(task=few, out=tmp_path / "run", device="cpu", streaming=streaming)
    with monkeypatch.context() as patch:
        patch.setattr("training.tune.run.write_history", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tune(config)
    tune(replace(config, resume=True, streaming=replace(streaming, workers=1)))
    assert Bundle.load(tmp_path / "run").digest == Bundle.load(few_run).digest


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt
