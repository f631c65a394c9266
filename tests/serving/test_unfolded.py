"""Tasks whose adapters cannot be folded, served by their exported graphs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from export.export import export
from export.options import ExportConfig
from mosa_deploy.adapters.attach import attach
from mosa_deploy.adapters.restore import restore
from mosa_deploy.adapters.save import save_bundle
from mosa_deploy.backbones.foldable import Transformer
from mosa_deploy.backbones.load import load_backbone
from mosa_deploy.backbones.names import EMBEDDED
from mosa_deploy.bundles.adapter_config import AdapterConfig, Style
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.preprocess import probabilities
from tests.support.app import ADMIN, running, scores
from tests.support.models import perturb
from tests.support.runs import Once
from tests.support.tasks import Traced, picture

CLASSES = ("bolt", "nut", "washer")
STYLES: dict[str, Style] = {"bolts": "pfeiffer", "nuts": "houlsby"}


FOLDED = "plates"
"""A task with a head alone, which can be folded."""


def make(root: Path) -> None:
    """Export a task of each style, on the embedded backbone with random adapters, and one with a head alone."""
    save(root, FOLDED, load_backbone(EMBEDDED, classes=len(CLASSES)), None)
    for name, style in STYLES.items():
        torch.manual_seed(len(name))
        config = AdapterConfig(bottleneck=2, experts=2, scale=1.0, style=style)
        model = load_backbone(EMBEDDED, classes=len(CLASSES))
        save(root, name, perturbed(model, config), config)


def perturbed(model: Transformer, config: AdapterConfig) -> Transformer:
    """The model with adapters that change its answers."""
    perturb(attach(model, config))
    return model


def save(root: Path, name: str, model: Transformer, config: AdapterConfig | None) -> None:
    """Save a task's run, and export it."""
    run, images = root / "runs" / name, [picture(seed) for seed in range(3)]
    save_bundle(model, config, run, task=name, classes=CLASSES, images=images)
    export(ExportConfig(bundle=run, out=root))


@pytest.fixture(scope="session")
def exported(once: Once, traced_store: Traced) -> Path:
    """The store; tests must not change it."""
    return once("unfolded", lambda root: make(Path(shutil.copytree(traced_store(EMBEDDED), root))))


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "store"))


def expected(store: Path, name: str, image: bytes) -> dict[str, float]:
    """What the tuned torch model says."""
    bundle = Bundle.load(store / "runs" / name)
    pixels = bundle.record.preprocess.read(image)
    with torch.inference_mode():
        logits = restore(bundle)(torch.from_numpy(bundle.record.preprocess.normalise(pixels[None]))).numpy()
    return dict(zip(CLASSES, probabilities(logits, bundle.record.temperature)[0].tolist(), strict=True))


@pytest.mark.parametrize("name", STYLES)
def test_the_service_answers_as_the_tuned_model_does(exported: Path, name: str) -> None:
    with running(exported) as client:
        response = client.post("/classify", files={"image": ("a.png", picture(7))}, data={"task": name})
    given, wanted = scores(response), expected(exported, name, picture(7))
    np.testing.assert_allclose([given[label] for label in CLASSES], [wanted[label] for label in CLASSES], atol=1e-5)


def test_the_list_of_tasks_names_the_lane(exported: Path) -> None:
    with running(exported) as client:
        found = client.get("/v1/tasks").json()["tasks"]
    assert [(each["task"], each["lane"], each["state"]) for each in found] == [
        ("bolts", "unfolded", "active"),
        ("nuts", "unfolded", "active"),
        (FOLDED, "shared", "active"),
    ]


def test_no_setting_folds_what_cannot_be_folded(exported: Path) -> None:
    with running(exported, folded="*") as client:
        assert client.get("/v1/tasks/bolts").json()["lane"] == "unfolded"


def test_sessions_bound_folded_and_unfolded_tasks_together(exported: Path) -> None:
    with running(exported, sessions=2, folded="*") as client:
        found = client.get("/v1/tasks").json()["tasks"]
        assert {each["task"]: each["lane"] for each in found}[FOLDED] == "folded"
        for name in (*STYLES, FOLDED, *STYLES):
            response = client.post("/classify", files={"image": ("a.png", picture(7))}, data={"task": name})
            assert response.status_code == 200
            states = [each["state"] for each in client.get("/v1/tasks").json()["tasks"]]
            assert sorted(states) == ["active", "active", "registered"]


def test_an_upload_without_a_graph_is_refused_with_the_command_that_exports_it(copied: Path) -> None:
    shutil.rmtree(copied / "tasks" / "nuts")
    with running(copied, admin_keys="root-key") as client:
        content = Archive.of(copied / "runs" / "nuts").pack()
        response = client.put("/v1/tasks/nuts", content=content, headers=ADMIN)
        assert response.status_code == 422
        assert "houlsby adapters, which only an exported graph can serve" in response.json()["detail"]
        assert f"run `mosa export --bundle RUN --out {copied}`" in response.json()["detail"]
        assert client.get("/v1/tasks/nuts").status_code == 404


def test_an_altered_graph_is_not_served(copied: Path) -> None:
    with (copied / "tasks" / "nuts" / "unfolded.onnx").open("r+b") as handle:
        handle.seek(-1, 2)
        handle.write(b"\0")
    with running(copied) as client:
        response = client.post("/classify", files={"image": ("a.png", picture(7))}, data={"task": "nuts"})
        assert response.status_code == 503
        assert "unfolded.onnx is not the graph that was proved with this bundle" in response.json()["detail"]
        assert client.post("/classify", files={"image": ("a.png", picture(7))}, data={"task": "bolts"}).is_success


def test_a_lane_that_a_task_cannot_have_is_no_choice(copied: Path) -> None:
    with running(copied, admin_keys="root-key") as client:
        response = client.put("/v1/tasks/nuts", params={"lane": "unfolded"}, content=b"x", headers=ADMIN)
    assert response.status_code == 422
