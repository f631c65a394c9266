"""What the tests of training share: a task of 60 digits, and folders of small images."""

from pathlib import Path

import pytest

from tests.support.images import PRETRAINED_CLASSES, write_jpegs
from tests.support.runs import Few, Once
from training import tasks
from training.config import TuneConfig
from training.tune import tune


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the small task, registered."""
    monkeypatch.setitem(tasks.TASKS, Few.name, Few())
    return Few.name


@pytest.fixture(scope="session")
def few_run(once: Once) -> Path:
    """A finished run of the small task by MoSA; tests must not change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks.TASKS, Few.name, Few())
        return once(Few.name, lambda out: tune(TuneConfig(task=Few.name, out=out, device="cpu")))


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 training and 9 test images."""
    folder = tmp_path_factory.mktemp("images")
    write_jpegs(folder / "train", dict.fromkeys(PRETRAINED_CLASSES, 8), size=32)
    write_jpegs(folder / "test", dict.fromkeys(PRETRAINED_CLASSES, 3), size=32)
    return folder
