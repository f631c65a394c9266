import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from mosa_deploy.bundles.adapter_config import AdapterConfig, Share
from mosa_deploy.bundles.record import RECORD, Backbone
from mosa_deploy.bundles.store_layout import StoreLayout
from mosa_deploy.errors import ConfigError, StoreError
from mosa_deploy.utils import versions
from mosa_deploy.utils.seeds import derive
from mosa_deploy.utils.shapes import shape_faults, shapes_of


def test_a_derived_seed_is_63_bits_of_the_uses_sha256() -> None:
    digest = hashlib.sha256(b"(7, 'expert', 3, 0)").hexdigest()
    assert derive(7, "expert", 3, 0) == int(digest[:16], 16) // 2
    torch.Generator().manual_seed(max(derive(seed) for seed in range(1000)))


def test_different_uses_have_different_seeds() -> None:
    uses: list[tuple[int, *tuple[str | int, ...]]] = [
        (0, "a", 1),
        (0, "a1"),
        (0, "a", "1"),
        (1, "a", 1),
        (0, "a", 1, 0),
    ]
    uses += [(0, "expert", epoch, layer) for epoch in range(30) for layer in range(24)]
    assert len({derive(*use) for use in uses}) == len(uses)


def test_shapes_read_the_same_from_numpy_and_torch() -> None:
    assert shapes_of({"a": torch.zeros(2, 3), "b": torch.zeros(())}) == {"a": (2, 3), "b": ()}
    assert shapes_of({"a": np.zeros((2, 3))}) == {"a": (2, 3)}


def test_shape_faults_are_sorted_in_one_line_and_empty_without_any() -> None:
    expected = {"b": (1,), "a": (2, 3), "c": ()}
    assert shape_faults(expected, dict(reversed(expected.items()))) == ""
    found = shape_faults(expected, {"a": (3, 2), "d": (1,), "e": (1,)})
    assert found == "a is (3, 2), not (2, 3); missing b; missing c; unexpected d; unexpected e"


def test_versions_are_those_of_the_installed_packages() -> None:
    found = versions.library_versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == importlib.metadata.version("torch")
    assert found["mosa-deploy"] == importlib.metadata.version("mosa-deploy")


def test_commit_is_the_checkouts_own_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "__file__", str(tmp_path / "mosa_deploy" / "utils" / "versions.py"))
    assert versions.git_commit() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run([*git, "init", "--quiet"], check=True, timeout=30)
    assert versions.git_commit() is None
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "x"], check=True, timeout=30)
    head = subprocess.run([*git, "log", "--format=%H"], check=True, timeout=30, capture_output=True, text=True)
    assert versions.git_commit() == head.stdout.strip()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert versions.git_commit() is None


def test_machine_names_its_cores_and_system() -> None:
    assert versions.machine().endswith(f", {os.cpu_count()} cores, {platform.system()}")


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


def test_all_faults_of_an_adapter_config_are_told_at_once() -> None:
    share: Share = "dwon"  # type: ignore[assignment]  # a wrong value on purpose
    with pytest.raises(ConfigError) as caught:
        AdapterConfig(bottleneck=0, experts=257, share=share, dropout=1.0)
    expected = (
        "--bottleneck 0: at least 1; --experts 257: 1 to 256; unknown --share 'dwon'; did you mean down or none?;"
        " dropout 1.0: at least 0 and below 1"
    )
    assert str(caught.value) == expected


def test_the_widest_adapter_config_is_accepted() -> None:
    config = AdapterConfig(bottleneck=1, experts=256, share="none", dropout=0.0)
    assert config == AdapterConfig(1, 256, "none", 0.1, 0.0)
