import pytest

from mosa_deploy.utils.set_names import SetName, read_set_name, says_nothing, set_of


@pytest.mark.parametrize("text", ["Train", "TRAINING", "train_set", "trainset", "01-train", "TrainImages", "trainval"])
def test_train_in_any_spelling(text: str) -> None:
    assert set_of(text) == "train"


@pytest.mark.parametrize("text", ["val", "Valid", "dev set", "eval_data", "validation-2"])
def test_validation_in_any_spelling(text: str) -> None:
    assert set_of(text) == "validation"


@pytest.mark.parametrize("text", ["trains", "contest", "device", "evaluator", "Testarossa", "valley", "", "train_test"])
def test_other_words_and_two_sets_are_none(text: str) -> None:
    assert read_set_name(text) is None


def test_what_else_a_name_says_makes_it_no_plain_set() -> None:
    assert read_set_name("seg_train") == SetName("train", "seg")
    assert set_of("seg_train") is None


@pytest.mark.parametrize(
    ("text", "nothing"), [("images", True), ("Image_Files", True), ("data-2", True), ("cats", False)]
)
def test_words_that_say_nothing(text: str, nothing: bool) -> None:
    assert says_nothing(text) is nothing
