"""What the service is asked, what it should answer, and the GPU that it may find."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from mosa_deploy.bundles.archive import Archive
from tests.support.app import Classify, Reference
from tests.support.host_gpu import HostGpu
from tests.support.quantised import write_int8, write_proof
from tests.support.runs import Once
from tests.support.tasks import TaskMaker


@pytest.fixture(scope="session")
def offline(maker: TaskMaker, archives: Mapping[str, Archive]) -> Mapping[str, np.typing.NDArray[np.float32]]:
    """The reference: each task's probabilities (n, K) of the maker's images, by its folded graph alone."""
    return {name: maker.offline(archive) for name, archive in archives.items()}


@pytest.fixture(scope="session")
def reference(
    maker: TaskMaker, archives: Mapping[str, Archive], offline: Mapping[str, np.typing.NDArray[np.float32]]
) -> Reference:
    """Checks what tasks answer."""
    return Reference(maker, archives, offline)


@pytest.fixture
def shared(copied: Path) -> Path:
    """The shared graph of the store."""
    (folder,) = (copied / "backbones").iterdir()
    return folder / "shared.onnx"


@pytest.fixture
def ask(client: TestClient) -> Classify:
    """Classify a file and return the response."""

    def classify(content: bytes, task: str, **form: str) -> Any:
        return client.post("/classify", files={"image": ("some.png", content)}, data={"task": task, **form})

    return classify


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> HostGpu:
    """A GPU of numpy with its TensorRT."""
    made = HostGpu()
    made.install(monkeypatch)
    return made


@pytest.fixture(scope="session")
def quantised(once: Once, maker: TaskMaker, archives: Mapping[str, Archive]) -> Path:
    """The maker's store with an int8 file. Its export says that `birds` loses nothing by it, and `cracks` a point."""

    def make(root: Path) -> None:
        shutil.copytree(maker.root, root)
        files = [write_int8(root, maker, archives["birds"])]
        files.append(files[0].with_name("shared.onnx"))
        write_proof(root, archives["birds"], files, {"fp32": 0.95, "int8": 0.95})
        write_proof(root, archives["cracks"], files, {"fp32": 0.95, "int8": 0.94})

    return once("quantised", make)
