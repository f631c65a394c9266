"""From an export in int8 to the answers of a server in a process of its own."""

from pathlib import Path

import httpx
import pytest

from export.export import export
from export.options import ExportConfig, FileOptions
from tests.support.app import scores
from tests.support.service import serve
from training.evaluate import measure
from training.options import EvaluateConfig
from training.subjects import choose_subject

pytestmark = pytest.mark.slow

ASKED = 200

LOSS = 3


@pytest.mark.parametrize("folded", ["", "digits"])
def test_200_answers_equal_those_of_an_evaluation_of_the_same_file(
    digits_run: Path, tmp_path: Path, folded: str
) -> None:
    root = tmp_path / "store"
    # A run of one epoch may lose an image of 256 by int8, which is 0.39 points.
    files = FileOptions(precision="fp32,int8", max_accuracy_loss=LOSS)
    export(ExportConfig(bundle=digits_run, out=root, files=files))
    (shared,), task = root.glob("backbones/*/shared.int8.onnx"), root / "tasks" / "digits"
    own = EvaluateConfig(onnx=task / "folded.int8.onnx")
    config = own if folded else EvaluateConfig(onnx=shared, bundle=task)
    evaluation = measure(config, *choose_subject(config))
    classes = evaluation.subject.classes
    with serve(root, tmp_path, precision="int8", max_accuracy_loss=LOSS, threads=1, folded=folded) as server:
        server.wait_until("ready")
        (entry,) = httpx.get(f"{server.address}/v1/tasks").json()["tasks"]
        assert (entry["precision"], entry["fallback"]) == ("int8", None)
        for example, row in list(zip(evaluation.test.examples, evaluation.probabilities, strict=True))[:ASKED]:
            answered = scores(server.classify("digits", example.read()))
            expected = dict(zip(classes, row.tolist(), strict=True))
            assert answered == pytest.approx({name: expected[name] for name in answered}, abs=1e-5)
            assert next(iter(answered)) == max(expected, key=expected.__getitem__)
