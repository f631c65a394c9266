"""The benchmark of scores of unknown images, on made-up features of well separated classes."""

import numpy as np
import pytest

from benchmarks.unknown import Features, draws, known_images, result_table, rows_of
from benchmarks.unknown_scores import CHOSEN

CLASSES, IMAGES, WIDTH = 6, 40, 8


@pytest.fixture(scope="module")
def data() -> Features:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), IMAGES)
    values = 4 * random.normal(size=(CLASSES, WIDTH))[labels] + random.normal(size=(len(labels), WIDTH))
    return Features(values.astype(np.float32), labels, tuple("abcdef"))


def test_the_classes_that_choose_a_score_are_not_those_that_report_it() -> None:
    found: dict[str, set[int]] = {"choose": set(), "report": set()}
    for part, held_out in draws(21):
        found[part] |= {*held_out}
    assert not found["choose"] & found["report"]
    assert found["choose"] | found["report"] == {*range(21)}


def test_a_task_knows_no_image_of_a_class_that_is_held_out(data: Features) -> None:
    known, test = known_images(data, [1, 4])
    assert {*known.labels} == {*known.validation_labels} == {0, 2, 3, 5}
    assert (len(known.train), len(known.validation), len(test)) == (96, 32, 32)
    others = data.values[np.isin(data.labels, [1, 4])]
    for images in (known.train, known.validation, test):
        assert not (images[:, None] == others).all(axis=2).any()


def test_every_score_tells_classes_that_are_far_apart(data: Features) -> None:
    rows = list(rows_of(data, {"noise": np.full((5, WIDTH), 90, dtype=np.float32)}))
    assert min(row.auroc for row in rows if row.score == CHOSEN) > 0.8
    assert min(row.auroc for row in rows if row.score.startswith("Mahalanobis")) > 0.9
    assert result_table(rows).splitlines()[0] == "| score | held-out classes, to choose | held-out classes | noise |"
