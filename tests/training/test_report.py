from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from sklearn.metrics import log_loss
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mosa_deploy.bundles.adapter_config import AdapterConfig
from mosa_deploy.bundles.record import Backbone, Record
from tests.support.images import PREPROCESS
from training.events import EVENTS
from training.loop import Row
from training.plots import draw_calibration, draw_confusion, draw_curves
from training.recipe import Recipe
from training.report import write_report
from training.scores import classification_metrics

CLASSES = ("airport", "harbor", "a|b", "empty")
PREDICTED = [0, 0, 0, 1, 1, 1, 0, 1]
LABELS = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])
"""No image is `empty`, and nothing is taken for `a|b` or for `empty`."""
LOGITS = 2 * torch.eye(4)[PREDICTED] + 0.1 * torch.arange(8)[:, None] * torch.eye(4)[3]
RECIPE = Recipe(backbone="vit_toy", bottleneck=2, epochs=2, lr=0.01)
EPOCHS: list[Row] = [
    {"epoch": epoch, "cross_entropy": 1.0, "validation_loss": 1.0, "validation_accuracy": 0.5} for epoch in (1, 2)
]
PROBES: list[Row] = [{"c": c, "validation_accuracy": accuracy} for c, accuracy in ((0.1, 0.2), (1, 0.5), (10, 0.5))]


def record(linear: bool = False) -> Record:
    return Record(
        task="ports",
        dataset="folder",
        backbone=Backbone(name="vit_toy", source="random", sha256="0123456789abcdef", depth=2, embed_dim=8),
        method="linear" if linear else "mosa",
        form="merged" if linear else "split",
        adapter=None if linear else AdapterConfig(bottleneck=2),
        classes=CLASSES,
        preprocess=PREPROCESS,
        temperature=2.0,
        metrics={"parameters": 1234.0},
        seed=7,
        versions={"python": "3.11", "torch": "2.15"},
        git_commit="c0ffee",
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with its report."""
    out = tmp_path_factory.mktemp("runs") / "ports"
    write_report(out, record(), RECIPE, LOGITS, LABELS, EPOCHS)
    return out


def section(text: str, name: str) -> list[str]:
    """The lines below a heading that are not blank."""
    return [line for line in text.split(f"\n## {name}\n")[1].split("\n## ")[0].splitlines() if line]


def test_report_names_what_was_tuned(run: Path) -> None:
    text = (run / "report.md").read_text()
    assert text.startswith("# ports, mosa on vit_toy\n")
    lines = text.split("\n## ")[0].splitlines()
    for line in (
        "| task | ports, 4 classes of folder |",
        "| backbone | vit_toy, random, sha256 0123456789ab |",
        "| adapter | bottleneck 2, experts 4, share down, scale 0.1, dropout 0.1, style parallel, activate per-pass |",
        "| parameters | 1,234 |",
        "| kept | epoch 1, the best of 2 |",
        "| seed | 7 |",
        "| versions | python 3.11, torch 2.15 |",
        "| commit | c0ffee |",
    ):
        assert line in lines
    (recipe,) = (line for line in lines if line.startswith("| recipe "))
    assert "epochs 2, batch size 64, lr 0.01" in recipe
    assert "bottleneck" not in recipe


MEANS = ("balanced_accuracy", "macro_f1")


def test_figures_before_and_after_the_temperature_are_those_of_the_formula(run: Path) -> None:
    table = section((run / "report.md").read_text(), "Validation")
    before, after = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (LOGITS.double().numpy() / t for t in (1, 2)))
    errors = [classification_metrics(given.astype(np.float32), LABELS)["ece"] for given in (before, after)]
    losses = [log_loss(LABELS.numpy(), given, labels=range(4)) for given in (before, after)]
    means = [f"{classification_metrics(before.astype(np.float32), LABELS)[name]:.4f}" for name in MEANS]
    assert table[:7] == [
        "|  | before the temperature | at temperature 2.000 |",
        "| --- | ---: | ---: |",
        "| accuracy | 0.5000 | 0.5000 |",
        f"| balanced accuracy (mean over the classes) | {means[0]} | {means[0]} |",
        f"| macro-F1 (mean over the classes) | {means[1]} | {means[1]} |",
        f"| negative log likelihood (nats) | {losses[0]:.4f} | {losses[1]:.4f} |",
        f"| expected calibration error | {errors[0]:.4f} | {errors[1]:.4f} |",
    ]
    assert losses[0] != pytest.approx(losses[1], abs=0.01)


def test_figures_of_each_class_are_those_counted_by_hand(run: Path) -> None:
    assert section((run / "report.md").read_text(), "Classes") == [
        "| class | images | precision | recall | F1 |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| `airport` | 5 | 0.750 | 0.600 | 0.667 |",
        "| `harbor` | 2 | 0.250 | 0.500 | 0.333 |",
        r"| `a\|b` | 1 | - | 0.000 | 0.000 |",
        "| `empty` | 0 | - | - | - |",
    ]


def test_confusions_are_put_into_words(run: Path) -> None:
    assert section((run / "report.md").read_text(), "Largest confusions") == [
        "- `airport` taken for `harbor`: 2 of 5 (40%)",
        "- `a|b` taken for `harbor`: 1 of 1 (100%)",
        "- `harbor` taken for `airport`: 1 of 2 (50%)",
    ]


def test_faultless_run_has_no_confusions(tmp_path: Path) -> None:
    write_report(tmp_path, record(), RECIPE, torch.eye(4)[LABELS], LABELS, EPOCHS)
    lines = section((tmp_path / "report.md").read_text(), "Largest confusions")
    assert lines == ["None: every image of validation is given its class."]


def test_report_gives_the_command_that_reads_the_test_set_and_no_path_of_the_machine(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (run / "report.md").read_text()
    assert "\nmosa evaluate --bundle ports\n" in text
    for file in run.iterdir():
        assert str(run.parent).encode() not in file.read_bytes()
    monkeypatch.chdir(tmp_path)
    write_report(Path("runs/ports"), record(), RECIPE, LOGITS, LABELS, EPOCHS)
    assert "\nmosa evaluate --bundle runs/ports\n" in Path("runs/ports/report.md").read_text()


def test_pictures_of_the_report_are_there_and_in_the_events(run: Path) -> None:
    shown = section((run / "report.md").read_text(), "Pictures")
    assert shown == ["![curves](curves.png)", "![confusion](confusion.png)", "![calibration](calibration.png)"]
    for name in ("curves.png", "confusion.png", "calibration.png"):
        with Image.open(run / name) as image:
            assert image.format == "PNG"
            assert len(np.unique(np.asarray(image.convert("L")))) > 10
    events = EventAccumulator(str(run)).Reload()
    assert set(events.Tags()["images"]) == {"curves", "confusion", "calibration"}
    assert [event.step for event in events.Scalars("validation_accuracy")] == [1, 2]
    assert [event.value for event in events.Scalars("kept/accuracy")] == [0.5]


def test_report_of_a_linear_probe_speaks_of_c(tmp_path: Path) -> None:
    write_report(tmp_path, record(linear=True), RECIPE, LOGITS, LABELS, PROBES)
    text = (tmp_path / "report.md").read_text()
    assert "| kept | C 1, the best of 3 |" in text
    assert "| adapter | none |" in text
    assert "images that also chose the C and the temperature" in text
    assert (tmp_path / EVENTS).is_file()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved while the test runs."""
    saved: list[Figure] = []
    save = Figure.savefig

    def keeping(self: Figure, *args: Any, **kwargs: Any) -> None:
        saved.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keeping)
    return saved


def shown(texts: Iterable[Text]) -> list[str]:
    return [text.get_text() for text in texts if text.get_text()]


def test_confusion_matrix_shows_counts_with_their_share_of_the_row_and_leaves_zeros_blank(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    draw_confusion(tmp_path / "a.png", np.array([[3, 1, 0], [1, 499, 0], [0, 0, 0]]), ["a", "b", "c"], "")
    axes = drawn[0].axes[0]
    assert shown(axes.texts) == ["3\n75 %", "1\n25 %", "1\n<1 %", "499\n100 %"]
    percent = np.array([[75, 25, 0], [0.2, 99.8, 0], [0, 0, 0]])
    assert np.asarray(axes.images[0].get_array()) == pytest.approx(percent)


@pytest.mark.parametrize("count", [2, 10, 25, 45, 100, 200])
def test_labels_of_a_confusion_matrix_do_not_overlap(tmp_path: Path, drawn: list[Figure], count: int) -> None:
    names = [f"thermal_$power$_station_{i}" for i in range(count)]
    draw_confusion(tmp_path / "a.png", np.eye(count, dtype=np.int64), names, "title")
    axes = drawn[0].axes[0]
    assert len(shown(axes.texts)) == (count if count <= 25 else 0)
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert shown(labels) == names
        assert not any(label.get_parse_math() for label in labels)
        boxes = [label.get_window_extent() for label in labels]
        assert not any(box.overlaps(following) for box, following in pairwise(boxes))
    width, height = drawn[0].get_size_inches()
    assert max(width, height) < 25


def test_confusion_matrix_of_500_classes_is_a_picture_without_labels(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_confusion(tmp_path / "a.png", np.eye(500, dtype=np.int64), [f"class {i}" for i in range(500)], "")
    assert shown(drawn[0].axes[0].get_xticklabels()) == []
    assert max(drawn[0].get_size_inches()) < 25


def test_legend_of_the_reliability_diagram_has_both_errors(tmp_path: Path, drawn: list[Figure]) -> None:
    before, after = (torch.softmax(LOGITS / t, 1).numpy() for t in (1, 2))
    draw_calibration(tmp_path / "a.png", before, after, LABELS, "")
    legend = drawn[0].axes[0].get_legend()
    assert legend is not None
    assert shown(legend.get_texts()) == [
        f"before the temperature, ECE {classification_metrics(before, LABELS)['ece']:.3f}",
        f"after the temperature, ECE {classification_metrics(after, LABELS)['ece']:.3f}",
    ]


@pytest.mark.parametrize(("rows", "kept"), [(EPOCHS[:1], "kept: 50.0 % at epoch 1"), (PROBES, "kept: 50.0 % at C 1")])
def test_curves_mark_what_was_kept(tmp_path: Path, drawn: list[Figure], rows: list[Row], kept: str) -> None:
    draw_curves(tmp_path / "a.png", rows, "")
    legend = drawn[0].axes[-1].get_legend()
    assert legend is not None
    assert shown(legend.get_texts()) == [kept]


def test_a_run_without_a_test_set_says_so_and_how_to_get_one(tmp_path: Path) -> None:
    write_report(tmp_path, record(linear=True), RECIPE, LOGITS, LABELS, PROBES, tested=False)
    text = (tmp_path / "report.md").read_text()
    assert "**There is no test set**" in text
    assert f"mosa evaluate --bundle {tmp_path.name} --data-dir FOLDER" in text
    assert "Nothing was chosen on the test set" not in text
