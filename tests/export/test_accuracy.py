import numpy as np
import pytest

from export.accuracy import check_accuracy, default_minimum
from mosa_deploy.errors import ConfigError

CLASSES = ("ant", "bee", "cat")

ANSWERS = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2, 0, 1]]


def test_the_accuracy_is_that_of_the_labelled_images() -> None:
    labels = ["ant", "bee", "cat", "ant", "bee", "ant", None, None]
    said = check_accuracy(ANSWERS, labels, CLASSES, None)
    assert said == "accuracy 0.833 on 6 images of --images"


def test_another_order_of_classes_is_refused() -> None:
    labels = [("bee", "cat", "ant")[i % 3] for i in range(8)]
    with pytest.raises(ConfigError, match=r"^accuracy 0\.000 on 8 images .*: below --min-accuracy 0\.667, so"):
        check_accuracy(ANSWERS, labels, CLASSES, None)
    assert check_accuracy(ANSWERS, labels, CLASSES, 0.0).startswith("accuracy 0.000")


def test_classes_in_each_others_place_are_named() -> None:
    labels = [("ant", "cat", "bee")[i % 3] for i in range(8)]
    with pytest.raises(ConfigError, match=r"never right: cat: below"):
        check_accuracy(ANSWERS, labels, CLASSES, None)


@pytest.mark.parametrize(("classes", "minimum"), [(2, 0.75), (10, 0.55), (1000, 0.5005)])
def test_the_default_lies_halfway_between_chance_and_1(classes: int, minimum: float) -> None:
    assert default_minimum(classes) == pytest.approx(minimum)
