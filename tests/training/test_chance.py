import numpy as np
import pytest

from training.chance import chance_remarks, temperature_remarks

CLASSES = ("cat", "dog")


def test_guesses_are_told_with_what_to_look_at() -> None:
    true, predicted = np.arange(200) % 2, np.random.default_rng(0).integers(0, 2, 200)
    (line,) = chance_remarks(true, predicted, CLASSES)
    assert line.startswith("warning: this learned nothing that 200 images can show: accuracy 0.")
    for word in ("always answering 'cat' gives 0.500", "labels", "--lr", "--image-size", "--white-level", "backbone"):
        assert word in line


def test_one_answer_for_all_has_learned_nothing() -> None:
    true = np.array([0] * 90 + [1] * 10)
    (line,) = chance_remarks(true, np.zeros_like(true), CLASSES)
    assert "learned nothing" in line
    assert "accuracy 0.900 on 100 images, and always answering 'cat' gives 0.900" in line


def test_a_good_result_is_not_doubted() -> None:
    true = np.arange(60) % 2
    predicted = np.where(np.arange(60) < 8, 1 - true, true)
    assert chance_remarks(true, predicted, CLASSES, chosen_from=20) == []


def test_the_best_of_many_epochs_of_guessing_is_still_guessing() -> None:
    true = np.arange(100) % 2
    predicted = np.where(np.arange(100) < 40, 1 - true, true)
    assert chance_remarks(true, predicted, CLASSES) == []
    assert "learned nothing" in chance_remarks(true, predicted, CLASSES, chosen_from=20)[0]


def test_a_rare_class_that_is_found_is_more_than_nothing() -> None:
    true = np.array([0] * 950 + [1] * 50)
    predicted = true.copy()
    predicted[900:950], predicted[970:] = 1, 0
    (line,) = chance_remarks(true, predicted, CLASSES)
    assert "no better than one answer for all: always answering 'cat' gives 0.950" in line
    assert "learned nothing" not in line


def test_four_images_cannot_tell() -> None:
    (line,) = chance_remarks(np.array([0, 1, 0, 1]), np.array([0, 1, 0, 1]), CLASSES)
    assert "4 images are too few to tell the result from guessing: accuracy 1.000" in line


@pytest.mark.parametrize(
    ("temperature", "words"), [(19.99, "say nothing about how sure"), (0.05001, "will be too sure"), (1.3, None)]
)
def test_a_temperature_at_its_bound_is_told(temperature: float, words: str | None) -> None:
    remarks = temperature_remarks(temperature)
    assert len(remarks) == (words is not None)
    assert words is None or words in remarks[0]
