from collections import Counter

import pytest

from mosa_deploy.errors import ConfigError, DataError
from training.tasks.base import Example, Splits
from training.tasks.subset import Subset


def splits(cats: int = 10, dogs: int = 7) -> Splits:
    labels = [0] * cats + [1] * dogs
    examples = [Example(str(i), lambda: b"", label) for i, label in enumerate(labels)]
    return Splits(("cat", "dog"), examples, examples[:3], examples[3:5], "all")


def names(drawn: Splits) -> set[str]:
    return {example.name for example in drawn.train}


def test_shots_are_drawn_from_each_class_and_the_other_sets_stay() -> None:
    whole = splits()
    drawn = Subset(shots=4).of(whole)
    assert Counter(example.label for example in drawn.train) == {0: 4, 1: 4}
    assert names(drawn) < names(whole)
    assert (drawn.validation, drawn.test) == (whole.validation, whole.test)
    assert drawn.note == "all; 4 images of each class to tune on, draw 0"


def test_a_fraction_is_of_each_class_and_rounded_up() -> None:
    drawn = Subset(fraction=0.3).of(splits())
    assert Counter(example.label for example in drawn.train) == {0: 3, 1: 3}
    assert Subset(fraction=1.0).of(splits()).train != []


def test_the_draw_has_a_seed_of_its_own() -> None:
    first, again, other = (Subset(shots=4, seed=seed).of(splits()) for seed in (1, 1, 2))
    assert names(first) == names(again)
    assert names(first) != names(other)


def test_without_shots_and_fraction_nothing_is_drawn() -> None:
    whole = splits()
    assert Subset().of(whole) is whole


def test_more_shots_than_a_class_has_are_refused_by_its_name() -> None:
    with pytest.raises(DataError, match=r"^--shots 8: class 'dog' has 7 training images; give fewer shots$"):
        Subset(shots=8).of(splits())


def test_every_fault_of_a_subset_is_named() -> None:
    said = r"^--shots and --fraction exclude each other: drop one; --shots 0: at least 1; --fraction 1.5: above 0, at"
    with pytest.raises(ConfigError, match=said):
        Subset(shots=0, fraction=1.5)
