import json
from pathlib import Path
from typing import Any

import pytest

from export.class_names import class_names
from export.facts import Fact, Facts
from mosa_deploy.errors import ConfigError

HERE = Path("head")


def names(given: str | None, count: int, folders: tuple[str, ...] = (), **found: Any) -> tuple[str, ...]:
    return class_names(given, Facts(**found), folders, count, HERE).value


def test_names_are_given_in_a_line_or_a_file(tmp_path: Path) -> None:
    assert names("bolt, nut,washer", 3) == ("bolt", "nut", "washer")
    many = tuple(f"species {i}" for i in range(100))
    assert names(",".join(many), 100) == many
    (tmp_path / "names.txt").write_text("a bolt, large\nnut\n")
    assert names(str(tmp_path / "names.txt"), 2) == ("a bolt, large", "nut")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_a_file_of_windows_gives_the_same_names(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "names.txt").write_bytes("Käfer\r\nMöhre\r\n".encode(encoding))
    assert names(str(tmp_path / "names.txt"), 2) == ("Käfer", "Möhre")


@pytest.mark.parametrize(
    "content", [["b", "a"], {"1": "a", "0": "b"}, {"a": 1, "b": 0}, {"id2label": {"0": "b", "1": "a"}}], ids=str
)
def test_a_json_file_gives_names_or_their_numbers(tmp_path: Path, content: Any) -> None:
    (tmp_path / "names.json").write_text(json.dumps(content))
    assert names(str(tmp_path / "names.json"), 2) == ("b", "a")


def test_numbers_that_are_class_names_are_told_from_positions(tmp_path: Path) -> None:
    (tmp_path / "class_to_idx.json").write_text(json.dumps({"0": 0, "1": 1, "10": 2, "2": 3}))
    assert names(str(tmp_path / "class_to_idx.json"), 4) == ("0", "1", "10", "2")


def test_lines_that_are_numbered_in_another_order_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("1 nut\n0 bolt\n")
    with pytest.raises(ConfigError, match=r"labels\.txt: its lines are numbered, but not in that order: sort them"):
        names(str(tmp_path / "labels.txt"), 2)


@pytest.mark.parametrize("lines", ["0 bolt\n1 nut\n", "0: bolt\n1: nut\n", "0,bolt\r\n1,nut\r\n"])
def test_the_numbers_of_lines_are_no_part_of_the_names(tmp_path: Path, lines: str) -> None:
    (tmp_path / "labels.txt").write_text(lines, newline="")
    assert names(str(tmp_path / "labels.txt"), 2) == ("bolt", "nut")


def test_numbers_without_which_names_would_be_equal_are_kept(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("0 stars\n1 stars\n2 stars\n")
    assert names(str(tmp_path / "labels.txt"), 3) == ("0 stars", "1 stars", "2 stars")


@pytest.mark.parametrize("text", ["- yes\n- no\n", "names:\n  0: yes\n  1: no\n", "names: [yes, no]\n"])
def test_a_yaml_file_gives_names_or_their_numbers(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    assert names(str(tmp_path / "data.yaml"), 2) == ("yes", "no")


def test_names_in_a_checkpoint_that_do_not_fit_its_head_are_not_passed_over() -> None:
    facts = Facts(entry_names=[Fact(("ground", "x", "y"), "classes in w.pth")])
    assert class_names(None, facts, ("x", "y"), 2, HERE).value == ("x", "y")
    assert facts.notes == ["classes in w.pth names 3 classes, the head has 2 outputs: they are not taken"]


def test_a_file_of_names_that_is_missing_is_said_to_be() -> None:
    with pytest.raises(ConfigError, match=r"^--classes labels\.txt: no such file; give names with commas"):
        names("labels.txt", 2)


@pytest.mark.parametrize("content", ["3", '{"0": ["n01", "tench"]}', '{"a": "b"}', '{"0": "a", "2": "b"}', "{"])
def test_a_json_file_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "names.json").write_text(content)
    with pytest.raises(ConfigError, match=r"names\.json is neither a JSON list of names nor an object of numbers"):
        names(str(tmp_path / "names.json"), 2)


def test_the_sources_own_names_come_before_folders_and_fit_the_head() -> None:
    own = [Fact(("x", "y"), "config.json")]
    assert names(None, 2, ("a", "b"), names=own) == ("x", "y")
    with pytest.raises(ConfigError, match=r"^config\.json: 2 names for the head's 3 outputs; give --classes"):
        names(None, 3, names=own)


def test_names_beside_the_backbone_count_only_if_they_fit_the_head() -> None:
    base = [Fact(("x", "y"), "vit/config.json")]
    assert names(None, 2, base_names=base) == ("x", "y")
    assert names(None, 3, ("a", "b", "c"), base_names=base) == ("a", "b", "c")
    with pytest.raises(ConfigError, match=r"^own and vit/config\.json name other classes: choose with --classes"):
        names(None, 2, names=[Fact(("y", "x"), "own")], base_names=base)


def test_classes_that_nobody_named_are_numbered() -> None:
    unnamed = [Fact(("LABEL_0", "LABEL_1"), "config.json")]
    assert names(None, 2, names=unnamed) == ("class0", "class1")
    assert names(None, 2, ("a", "b"), names=unnamed) == ("a", "b")
    assert not class_names(None, Facts(), (), 2, HERE).known


def test_an_order_of_folders_that_is_not_certain_is_refused() -> None:
    folders = ("1", "10", "2")
    assert names(None, 3, folders) == folders
    with pytest.raises(ConfigError, match=r"their order is not certain \(1, 10, 2, \.\.\.\): give --classes"):
        class_names(None, Facts(), folders, 3, HERE, natural=True)
    with pytest.raises(
        ConfigError, match=r"^the classes were ordered by map\.txt, not by folders: give it as --classes"
    ):
        names(None, 3, folders, class_map="map.txt")


def test_names_that_do_not_fit_the_head_are_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^--classes a,,a: 3 names for the head's 4 outputs; an empty name; 'a' twice; give --classes with one",
    ):
        names("a,,a", 4)


def test_a_single_output_is_no_classifier() -> None:
    with pytest.raises(ConfigError, match=r"^the head in head has 1 output, as for regression or a sigmoid: class"):
        names("a", 1)
