import json
from pathlib import Path

import pytest

from export.class_names import class_names
from mosa_deploy.errors import BackboneError, ConfigError


def test_names_are_given_in_a_line_or_a_file(tmp_path: Path) -> None:
    assert class_names("bolt, nut,washer", tmp_path, 3) == ("bolt", "nut", "washer")
    many = tuple(f"species {i}" for i in range(100))
    assert class_names(",".join(many), tmp_path, 100) == many
    (tmp_path / "names.txt").write_text("a bolt, large\nnut\n")
    assert class_names(str(tmp_path / "names.txt"), tmp_path, 2) == ("a bolt, large", "nut")


def test_names_of_a_config_are_taken_by_their_numbers(tmp_path: Path) -> None:
    names = {str(i): f"kind {i}" for i in range(11)}
    (tmp_path / "config.json").write_text(json.dumps({"id2label": dict(sorted(names.items()))}))
    assert class_names(None, tmp_path, 11) == tuple(names.values())
    assert class_names(None, tmp_path / "model.safetensors", 11) == tuple(names.values())


@pytest.mark.parametrize("text", [None, "{}", '{"id2label": {"a": "b"}}', '{"id2label": null}'])
def test_without_any_the_outputs_are_numbered(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert class_names(None, tmp_path, 3) == ("class0", "class1", "class2")


def test_names_that_do_not_fit_the_head_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^--classes a,,a: 3 names for the head's 4 outputs; an empty name; 'a' twice; give --classes with one",
    ):
        class_names("a,,a", tmp_path, 4)
    (tmp_path / "config.json").write_text('{"id2label": {"0": "a", "1": "b"}}')
    with pytest.raises(ConfigError, match=r"^id2label in .*config\.json: 2 names for the head's 3 outputs; give"):
        class_names(None, tmp_path, 3)
    with pytest.raises(ConfigError, match=r"has 1 output: classification needs at least two$"):
        class_names("a", tmp_path, 1)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(BackboneError, match=r"config\.json is not a JSON object"):
        class_names(None, tmp_path, 3)
