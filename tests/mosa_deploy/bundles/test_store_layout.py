from pathlib import Path

import pytest

from mosa_deploy.bundles.record import RECORD, Backbone
from mosa_deploy.bundles.store_layout import StoreLayout
from mosa_deploy.errors import StoreError


def test_a_store_lists_the_tasks_that_have_a_record(tmp_path: Path) -> None:
    for name in ("zebra", "ants", ".ants.1.tmp", "Loud"):
        (tmp_path / "tasks" / name).mkdir(parents=True)
        (tmp_path / "tasks" / name / RECORD).touch()
    (tmp_path / "tasks" / "unfinished").mkdir()
    assert StoreLayout(tmp_path).tasks() == ["ants", "zebra"]


def test_a_store_lays_backbones_by_name_and_hash_and_tasks_by_name() -> None:
    backbone = Backbone(name="vit", source="file", sha256="0123456789abcdef", depth=1, embed_dim=1)
    assert StoreLayout(Path("root")).backbone(backbone) == Path("root/backbones/vit-01234567")
    assert StoreLayout(Path("root")).task("ants") == Path("root/tasks/ants")


def test_an_empty_store_names_the_command_that_fills_it(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=rf"^no task in {tmp_path}/tasks: .*`mosa export --out {tmp_path}`$"):
        StoreLayout(tmp_path).tasks()
