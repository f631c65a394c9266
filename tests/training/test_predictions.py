import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mosa_deploy.bundles.decode import Decode, encode
from training import predictions
from training.data import Images
from training.plots import Tile
from training.predictions import write_mistakes, write_predictions
from training.tasks.base import Example

CLASSES = ("cat", "a,b")
PROBABILITIES = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]], dtype=np.float32)
"""The first and the second are right."""


@pytest.fixture
def images() -> Images:
    examples = [
        Example(f"{i}.png", lambda i=i: encode(np.full((8, 40, 3), 60 * i, dtype=np.uint8)), label)  # type: ignore[misc] # i is bound
        for i, label in enumerate((0, 1, 0, 1))
    ]
    return Images(torch.zeros(4, 8, 8, 3, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]), examples)


def test_every_answer_has_its_line(images: Images, tmp_path: Path) -> None:
    write_predictions(tmp_path, images, PROBABILITIES, CLASSES)
    with (tmp_path / "predictions.csv").open(newline="") as handle:
        assert list(csv.reader(handle)) == [
            ["file", "label", "answer", "score"],
            ["0.png", "cat", "cat", "0.900000"],
            ["1.png", "a,b", "a,b", "0.600000"],
            ["2.png", "cat", "a,b", "0.800000"],
            ["3.png", "a,b", "cat", "0.700000"],
        ]


def test_the_surest_mistakes_come_first(images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tile] = []
    monkeypatch.setattr(predictions, "draw_tiles", lambda path, tiles, title: drawn.extend(tiles))
    assert write_mistakes(tmp_path, images, PROBABILITIES, CLASSES, Decode()) == 2
    assert [(tile.answer, tile.label, tile.name) for tile in drawn] == [
        ("a,b 0.80", "is cat", "2.png"),
        ("cat 0.70", "is a,b", "3.png"),
    ]


def test_the_picture_of_an_earlier_evaluation_does_not_stay(images: Images, tmp_path: Path) -> None:
    write_mistakes(tmp_path, images, PROBABILITIES, CLASSES, Decode())
    with Image.open(tmp_path / "mistakes.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10
    assert write_mistakes(tmp_path, images, PROBABILITIES[[0, 1, 0, 1]], CLASSES, Decode()) == 0
    assert not (tmp_path / "mistakes.png").exists()


def test_class_names_in_a_script_without_a_font_do_not_fill_the_terminal(images: Images, tmp_path: Path) -> None:
    assert write_mistakes(tmp_path, images, PROBABILITIES, ("猫 $x$", "犬_{"), Decode()) == 2
