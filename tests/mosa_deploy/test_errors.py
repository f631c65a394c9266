import pytest

from mosa_deploy import errors
from mosa_deploy.errors import BundleError, MosaError, command, unknown_name


def test_a_mistake_of_the_users_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def main() -> None:
        raise BundleError("run/adapter.json: no such file")

    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", "error: run/adapter.json: no such file\n")
    assert caught.value.__suppress_context__


def test_an_interruption_is_one_line_and_exit_code_130(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 130
    assert capsys.readouterr() == ("", "interrupted; what was finished is kept\n")


def test_a_bug_keeps_its_traceback() -> None:
    @command
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()


def test_every_fault_is_one_of_the_trees_and_drawn_in_its_docstring() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(classes) == 13
    for fault in classes:
        assert issubclass(fault, MosaError)
        assert fault.__name__ in (errors.__doc__ or "")


def test_an_unknown_name_offers_the_nearest_or_else_all() -> None:
    known = ["eurosat", "digits", "sprites-location", "sprites-orientation"]
    assert unknown_name("task", "digit", known) == "unknown task 'digit'; did you mean digits?"
    near = unknown_name("task", "sprites-place", known)
    assert near == "unknown task 'sprites-place'; did you mean sprites-location or sprites-orientation?"
    assert unknown_name("task", "zzz", known).endswith("known: digits, eurosat, sprites-location, sprites-orientation")
