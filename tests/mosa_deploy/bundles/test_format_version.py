"""The mechanism, on a format made up for it; `tests/test_format_versions.py` shows every format that there is."""

import pytest

from mosa_deploy.bundles.format_version import Fields, FileFormat
from mosa_deploy.errors import StoreError


def rename(fields: Fields) -> Fields:
    """Version 2 calls `colour` what was called `color`."""
    return {"colour": fields["color"]}


def listed(fields: Fields) -> Fields:
    """Version 3 has a list of colours."""
    return {"colours": [fields["colour"]]}


PAINT = FileFormat("paint.json", StoreError, remedy="paint again", migrations=(rename, listed), unstated=1)


@pytest.mark.parametrize(
    "written",
    [
        {"color": "red"},
        {"format_version": 1, "color": "red"},
        {"format_version": 2, "colour": "red"},
        {"format_version": 3, "colours": ["red"]},
    ],
)
def test_every_version_is_brought_to_the_newest(written: Fields) -> None:
    assert PAINT.upgrade(written, "a/paint.json") == {"format_version": 3, "colours": ["red"]}


def test_what_a_migration_does_not_find_is_damage_in_one_line() -> None:
    with pytest.raises(StoreError, match=r"^a/paint\.json is damaged \(KeyError\): paint again$"):
        PAINT.upgrade({"format_version": 1, "colour": "red"}, "a/paint.json")
