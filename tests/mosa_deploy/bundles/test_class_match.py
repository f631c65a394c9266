import unicodedata

import pytest

from mosa_deploy.bundles.class_match import match_classes
from mosa_deploy.errors import DataError

CATS = ("cat", "dog", "élan")


def test_equal_classes_match_without_a_word() -> None:
    assert match_classes(CATS, CATS, "photos").places == (0, 1, 2)
    assert match_classes(CATS, CATS, "photos").notes == ()


def test_another_order_is_matched_by_name_and_said() -> None:
    match = match_classes(CATS, ("élan", "cat", "dog"), "photos")
    assert match.places == (2, 0, 1)
    assert match.notes == ("the classes of photos are in another order than the task's; they are matched by name",)


def test_case_and_unicode_form_are_matched_and_said() -> None:
    match = match_classes(CATS, ("Cat", "dog", unicodedata.normalize("NFD", "élan")), "photos")
    assert match.places == (0, 1, 2)
    assert match.notes == (
        "class names of photos differ by case, spaces or Unicode form: 'Cat' for 'cat', 'e\\u0301lan' for '\\xe9lan'",
    )


def test_superfluous_spaces_are_matched_and_said() -> None:
    match = match_classes(("red deer", "roe deer"), ("red  deer ", "roe deer"), "photos")
    assert match.places == (0, 1)
    assert match.notes == ("class names of photos differ by case, spaces or Unicode form: 'red  deer ' for 'red deer'",)


def test_exact_names_win_over_names_that_differ_by_case() -> None:
    assert match_classes(("a", "A", "b"), ("A", "a", "b"), "photos").places == (1, 0, 2)


@pytest.mark.parametrize(
    ("learned", "given", "fault"),
    [
        (
            ("cat", "dog"),
            ("dog", "zebra"),
            "photos lacks the task's class 'cat' and has a class that the task does",
        ),
        (CATS, ("cat", "dog"), "photos lacks the task's class 'élan'; give images of the same classes, in folders"),
        (("cat", "dog"), CATS, "photos has a class that the task does not know: 'élan'; give images of the same"),
        (("cat", "dog"), ("cat", "dogs"), "does not know: 'dogs'; rename 'dogs' to 'dog'"),
        (("cat", "dog"), ("Cat", "cat", "dog"), "photos has one class twice: 'Cat', 'cat'"),
        (("0", "1"), ("zero", "one"), "photos lacks the task's class '0', '1'"),
        (("class0", "class1"), CATS, "photos has 3 classes (cat, dog, élan), the task has 2 (class0, class1)"),
    ],
)
def test_a_class_too_few_or_too_many_is_an_error_that_names_it(
    learned: tuple[str, ...], given: tuple[str, ...], fault: str
) -> None:
    with pytest.raises(DataError) as caught:
        match_classes(learned, given, "photos")
    assert fault in str(caught.value)


def test_numbered_classes_take_the_sorted_order_which_cannot_be_checked() -> None:
    match = match_classes(("class0", "class1"), ("ant", "bee"), "photos")
    assert match.places == (0, 1)
    assert match.notes == (
        "the task knows its classes by number only, so their order cannot be checked;"
        " taken: class0 is 'ant', class1 is 'bee'",
    )


def test_numbers_match_numbers_and_not_the_order_of_their_texts() -> None:
    learned = tuple(f"LABEL_{i}" for i in range(12))
    given = sorted(str(i) for i in range(12))
    match = match_classes(learned, given, "photos")
    assert [given[match.places.index(place)] for place in range(12)] == [str(i) for i in range(12)]
    assert "cannot be checked" in match.notes[0]
