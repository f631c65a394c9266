"""OpenVINO, where it is installed, and what is said where it is not."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.bundles.store_layout import StoreLayout
from mosa_deploy.errors import ProviderError
from mosa_deploy.graphs.adapter_weights import adapter_weights, layout_of
from mosa_deploy.graphs.bank import Bank
from mosa_deploy.runtimes.onnx_runtime import OnnxRunner
from mosa_deploy.runtimes.openvino import OpenVinoRunner, load_openvino, to_bf16
from mosa_deploy.runtimes.runner import Runner
from mosa_deploy.runtimes.shared import SharedRunner
from tests.support.openvino import pretend_openvino
from tests.support.tasks import TaskMaker


def test_numbers_are_rounded_to_the_nearest_bf16() -> None:
    values = np.random.default_rng(0).standard_normal((64, 8), dtype=np.float32)
    values[0, :3] = 0, 1 + 2**-8, 1 + 3 * 2**-8  # ties go to the even neighbour
    expected = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(to_bf16(values), expected)


def test_a_release_that_is_too_old_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_openvino(monkeypatch, "2024.6.0-17404-4c0f47d2335")
    with pytest.raises(ProviderError, match=r"^OpenVINO 2024\.6\.0-\S+ is installed, 2026\.0 or later is needed: pip"):
        load_openvino()


@pytest.fixture
def in_bf16(maker: TaskMaker) -> OpenVinoRunner:
    """The shared graph by OpenVINO in bf16."""
    pytest.importorskip("openvino")
    try:
        return OpenVinoRunner(StoreLayout(maker.root).backbone(maker.backbone) / "shared.onnx", "bf16", 1)
    except ProviderError as missing:
        pytest.skip(str(missing))  # this CPU does not multiply in bf16


def features(runner: Runner, maker: TaskMaker, archives: Mapping[str, Archive]) -> list[Array]:
    """The features of two images by `birds`, then by `cracks` which was added since, then from a bank that grew."""
    birds, cracks = (archives[name].bundle() for name in ("birds", "cracks"))
    bank = Bank(layout_of(birds.record), 4, capacity=2)
    shared, first = SharedRunner(runner, bank), bank.write(adapter_weights(birds))
    images = maker.preprocess.normalise(np.stack([maker.preprocess.read(image) for image in maker.images[:2]]))
    found = [shared.run(images, np.array([first, first]))]
    second = bank.write(adapter_weights(cracks))
    found.append(shared.run(images, np.array([first, second])))
    bank.write(adapter_weights(cracks))
    assert bank.growths == 1
    return [*found, shared.run(images, np.array([second, first]))]


def test_banks_in_bf16_are_written_in_place(
    in_bf16: OpenVinoRunner, maker: TaskMaker, archives: Mapping[str, Archive]
) -> None:
    graph = StoreLayout(maker.root).backbone(maker.backbone) / "shared.onnx"
    expected, found = (features(runner, maker, archives) for runner in (OnnxRunner(graph, threads=1), in_bf16))
    assert in_bf16.halved == set(in_bf16.inputs) - {"images", "slots"}
    for one, other in zip(expected, found, strict=True):
        # The adapters move features by more than a hundredth of the largest.
        assert np.abs(one - other).max() < 8e-3 * np.abs(one).max()
    assert np.abs(found[1] - found[0])[1].max() > 1e-2 * np.abs(found[0]).max()
