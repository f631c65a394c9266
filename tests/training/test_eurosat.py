import os
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mosa_deploy.backbones import embedded
from mosa_deploy.errors import DataError
from tests.support.images import DATA, write_jpegs
from training.config import TuneConfig
from training.evaluate import evaluate
from training.options import EvaluateConfig
from training.tasks import eurosat
from training.tasks.base import Example, Splits
from training.tasks.eurosat import EuroSat, listed
from training.tune import tune


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """EuroSAT's layout with 10, 10, 10 and 10 images."""
    write_jpegs(tmp_path / "2750", dict.fromkeys(("Forest", "Highway", "River", "SeaLake"), 10))
    return tmp_path


@pytest.fixture
def whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, taken as EuroSAT's whole size."""
    monkeypatch.setattr(eurosat, "IMAGES", 40)
    monkeypatch.setattr(eurosat, "SIZES", {"vtab": (8, 4, 20), "full": (24, 8, 8)})
    return folder


def counts(splits: Splits) -> list[set[int]]:
    """For each set, the numbers of images that a class has."""
    sets = (splits.train, splits.validation, splits.test)
    names = [example.name for part in sets for example in part]
    assert len(set(names)) == len(names)
    return [set(Counter(example.label for example in part).values()) for part in sets]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """The hosts that a process asks for, where nothing is cached and the proxy reaches none of them.

    ONNX Runtime's telemetry may ask for a host of its own.
    """
    asked: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            asked.append(self.path)
            self.send_error(502)

        def log_message(self, *_: object) -> None:
            pass

    for name in [name for name in os.environ if name.lower().startswith(("hf_", "no_proxy"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        for name in ("https_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield asked
        server.shutdown()


def refused(*flags: str) -> str:
    """What `training.tune --task eurosat` says when it refuses."""
    command = [sys.executable, "-m", "training.tune", "--task", "eurosat", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2, done.stderr
    return done.stderr


def test_folder_of_another_size_is_split_60_20_20_and_said_so(folder: Path) -> None:
    splits = EuroSat().splits(folder, None)
    assert splits.classes == ("Forest", "Highway", "River", "SeaLake")
    assert counts(splits) == [{6}, {2}, {2}]
    assert splits.note == "40 images are not EuroSAT's 27,000: split 60/20/20, stratified"


@pytest.mark.parametrize(("split", "each"), [(None, [2, 1, 5]), ("vtab", [2, 1, 5]), ("full", [6, 2, 2])])
def test_whole_size_is_split_as_asked_by_default_as_vtab(whole: Path, split: str | None, each: list[int]) -> None:
    splits = EuroSat().splits(whole, split)
    assert counts(splits) == [{number} for number in each]
    assert splits.note.startswith(split or "vtab")


def test_promised_sizes_are_those_of_vtab_and_of_all_images() -> None:
    assert eurosat.SIZES == {"vtab": (800, 200, 5400), "full": (16200, 5400, 5400)}
    assert sum(eurosat.SIZES["full"]) == eurosat.IMAGES


def test_asked_for_60_20_20_the_whole_size_is_not_called_another(whole: Path) -> None:
    splits = EuroSat().splits(whole, "60-20-20")
    assert counts(splits) == [{6}, {2}, {2}]
    assert splits.note == "split 60/20/20, stratified"


def test_percentages_of_ones_own_are_taken(folder: Path) -> None:
    splits = EuroSat().splits(folder, "50-30-20")
    assert counts(splits) == [{5}, {3}, {2}]
    assert splits.note.endswith("split 50/30/20, stratified")


@pytest.mark.parametrize("inside", ["2750", "eurosat/2750"])
def test_archive_of_the_layout_is_split_like_the_folder(folder: Path, tmp_path: Path, inside: str) -> None:
    with tarfile.open(tmp_path / "eurosat.tar", "w") as archive:
        archive.add(folder / "2750", inside)
    unpacked, packed = EuroSat().splits(folder, None), EuroSat().splits(tmp_path / "eurosat.tar", None)
    for part in ("train", "validation", "test"):
        assert [(e.name, e.label, e.read()) for e in getattr(packed, part)] == [
            (e.name, e.label, e.read()) for e in getattr(unpacked, part)
        ]


def test_examples_read_the_files_they_name(folder: Path) -> None:
    splits = EuroSat().splits(folder, None)
    for example in splits.test:
        assert example.read() == (folder / "2750" / example.name).read_bytes()
        assert example.name.split("/")[0] == splits.name_of(example.label)


def test_split_larger_than_the_folder_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"^--split full needs 27,000 images, there are 40: leave it out$"):
        EuroSat().splits(folder, "full")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_list_file_decides_the_split(folder: Path, tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "mine.txt"
    lines = ("train Forest/Forest_3.jpg", "test River/River_1.jpg", "validation SeaLake/SeaLake_2.jpg")
    path.write_text("\r\n".join(lines), encoding=encoding, newline="")
    splits = EuroSat().splits(folder, str(path))
    assert [(example.name, example.label) for example in splits.train] == [("Forest/Forest_3.jpg", 0)]
    assert [example.name for example in splits.validation] == ["SeaLake/SeaLake_2.jpg"]
    assert [example.name for example in splits.test] == ["River/River_1.jpg"]
    assert "mine.txt" in splits.note


@pytest.mark.parametrize("line", ["train Forest/Forest_99.jpg", "holdout Forest/Forest_1.jpg", "Forest/Forest_1.jpg"])
def test_bad_line_of_a_list_is_named_with_its_number(folder: Path, tmp_path: Path, line: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(f"train Forest/Forest_3.jpg\n{line}\n")
    with pytest.raises(DataError, match=rf"mine\.txt:2: '{line}' is not `train\|validation\|test"):
        EuroSat().splits(folder, str(path))


def test_unknown_split_names_the_known_ones(folder: Path) -> None:
    with pytest.raises(DataError, match=r"^--split vtob: give vtab, full, percentages such as 60-20-20, or a file"):
        EuroSat().splits(folder, "vtob")


def test_data_dir_without_the_layout_is_refused(tmp_path: Path) -> None:
    write_jpegs(tmp_path, {"Forest": 1})
    with pytest.raises(DataError, match=r"no 2750/<Class>/\*\.jpg in it; give EuroSAT's unpacked folder"):
        EuroSat().splits(tmp_path, None)


def test_folder_above_the_layout_is_found_too(tmp_path: Path) -> None:
    write_jpegs(tmp_path / "eurosat" / "2750", {"Forest": 5, "River": 5})
    assert EuroSat().splits(tmp_path, None).classes == ("Forest", "River")


def test_one_class_is_no_task(tmp_path: Path) -> None:
    write_jpegs(tmp_path / "2750", {"Forest": 3})
    with pytest.raises(DataError, match=r"holds 1 class folder\(s\): a task needs at least two"):
        EuroSat().splits(tmp_path, None)


def test_empty_class_is_named(folder: Path) -> None:
    (folder / "2750" / "Pasture").mkdir()
    (folder / "2750" / "Pasture" / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"^class 'Pasture' in .* is empty \(left out as no images: 1 \.txt\): add"):
        EuroSat().splits(folder, None)


def test_without_data_and_network_what_was_tried_and_the_ways_on_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOSA_HOME", str(tmp_path))
    monkeypatch.setattr(eurosat, "HOST", "http://127.0.0.1:9")
    with pytest.raises(DataError) as caught:
        EuroSat().splits(None, None)
    text = str(caught.value)
    assert "\n" not in text
    for words in (str(tmp_path / "eurosat" / "2750"), "http://127.0.0.1:9", "--data-dir", "--task digits"):
        assert words in text


def test_cached_images_need_no_network(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSA_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(eurosat, "HOST", "http://127.0.0.1:9")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "eurosat").symlink_to(folder)
    assert len(EuroSat().splits(None, None).train) == 24


def test_command_line_without_data_and_weights_asks_for_the_data_once_and_speaks_of_it(asked: list[str]) -> None:
    said = refused()
    assert said.startswith("error: no EuroSAT images")
    assert said.count("\n") == 1
    assert asked.count("huggingface.co:443") == 1


def test_command_line_with_data_asks_for_the_weights_once_and_speaks_of_them(asked: list[str], folder: Path) -> None:
    said = refused("--data-dir", str(folder))
    assert said.startswith("error: no weights for vit_small_patch14_dinov2.lvd142m")
    assert "--backbone-weights FILE" in said
    assert said.count("\n") == 1
    assert asked.count("huggingface.co:443") == 1


@pytest.mark.data
def test_layout_of_real_photos_is_tuned_and_evaluated(tmp_path: Path) -> None:
    with tarfile.open(DATA / "eurosat_layout.tar") as archive:
        every_tenth = [member for member in archive if member.name.endswith("0.jpg")]
        archive.extractall(tmp_path, every_tenth, filter="data")
    out = tmp_path / "run"
    tune(TuneConfig(task="eurosat", backbone=embedded.NAME, data_dir=tmp_path, epochs=1, out=out, device="cpu"))
    measured = evaluate(EvaluateConfig(bundle=out, device="cpu"))
    assert 0 <= measured["accuracy"] <= 1
    assert measured["nll"] > 0


def test_list_that_names_an_image_twice_is_refused(tmp_path: Path) -> None:
    image = Example("a/1.jpg", bytes, 0)
    path = tmp_path / "split.txt"
    path.write_text("train a/1.jpg\ntest a/1.jpg\n")
    with pytest.raises(DataError, match=r"split\.txt:2: 'test a/1\.jpg' .* not yet listed"):
        listed(("a", "b"), [image], path)
