"""What an export may take the place of in a store."""

import json
from pathlib import Path

import pytest

from export.replacing import KEPT, Replaced
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.decision import Decision, KeptVersion, parse_note
from mosa_deploy.bundles.store_layout import StoreLayout, decision_file, upload_file
from mosa_deploy.errors import StoreError
from tests.support.runs import small_bundle
from tests.support.tasks import packed


def version(seed: int, *classes: str) -> Archive:
    """A version of the task `toy`."""
    bundle = small_bundle()
    update = {"seed": seed, "classes": classes or bundle.record.classes}
    return packed(type(bundle)(bundle.record.model_copy(update=update), bundle.tensors, bundle.canary))


def export(root: Path, archive: Archive, new_classes: bool = False, replace_upload: bool = False) -> None:
    """Write a version into a store, as `mosa export` does."""
    store = StoreLayout(root)
    replaced = Replaced.find(store, archive.bundle().record, new_classes, replace_upload)
    replaced.keep()
    folder = store.task("toy")
    folder.mkdir(parents=True, exist_ok=True)
    replaced.write_note(folder, archive.key)
    (folder / "adapter.json").write_bytes(archive.record)
    (folder / "adapter.safetensors").write_bytes(archive.tensors)


def upload(root: Path, archive: Archive) -> None:
    """Serve an uploaded version of a task that was exported before."""
    exported = Archive((root / "tasks" / "toy" / "adapter.json").read_bytes(), b"").key
    kept = KeptVersion.of(archive.key, archive.bundle().record, "upload", None)
    decision = Decision(current=archive.key, previous=exported, exported=exported, versions=(kept,))
    for path, content in (
        (root / decision_file("toy", 1), decision.model_dump_json().encode()),
        (root / upload_file(archive.key), archive.pack()),
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def test_an_export_with_the_same_classes_replaces_the_one_before_and_keeps_it(tmp_path: Path) -> None:
    first, second = version(1), version(2)
    export(tmp_path, first)
    export(tmp_path, second)
    note = json.loads((tmp_path / "tasks" / "toy" / "export.json").read_text())
    assert (note["replaces"], note["kept"]) == (first.key, [first.key])
    assert (tmp_path / upload_file(first.key)).read_bytes() == first.pack()


def test_other_classes_need_their_flag(tmp_path: Path) -> None:
    export(tmp_path, version(1))
    with pytest.raises(StoreError) as caught:
        export(tmp_path, version(2, "sea", "lake"))
    classes = "it has other classes (new: lake; gone: río), add --new-classes if that is meant"
    assert str(caught.value) == f"'toy' in {tmp_path}: {classes}"
    export(tmp_path, version(2, "sea", "lake"), new_classes=True)


def test_an_uploaded_version_needs_its_flag(tmp_path: Path) -> None:
    export(tmp_path, version(1))
    upload(tmp_path, version(2))
    with pytest.raises(StoreError, match="an uploaded version is served, add --replace-upload to replace it at the"):
        export(tmp_path, version(3))
    export(tmp_path, version(3), replace_upload=True)
    path = tmp_path / "tasks" / "toy" / "export.json"
    assert parse_note(path.read_bytes(), "").replaces == version(2).key


def test_a_decision_of_an_earlier_release_is_followed_too(tmp_path: Path) -> None:
    export(tmp_path, version(1))
    upload(tmp_path, version(2, "a", "b"))
    path = tmp_path / decision_file("toy", 1)
    fields = json.loads(path.read_text())
    del fields["versions"]
    path.write_text(json.dumps(fields | {"format_version": 1}))
    with pytest.raises(StoreError, match=r"an uploaded version .*; it has other classes \(new: río, sea; gone: a, b\)"):
        export(tmp_path, version(3))


def test_no_more_replaced_exports_are_kept_than_stated(tmp_path: Path) -> None:
    for seed in range(KEPT + 3):
        export(tmp_path, version(seed))
    assert len(list((tmp_path / "uploads").iterdir())) == KEPT


def test_an_export_of_the_same_bundle_again_replaces_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        export(tmp_path, version(1))
    note = json.loads((tmp_path / "tasks" / "toy" / "export.json").read_text())
    assert (note["replaces"], note["kept"]) == (None, [])
