"""Images with several labels, or none, beside a bundle and in its `.mosa` file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mosa_deploy.bundles.answers import PerLabel
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.calibration import Samples, read_samples, write_samples
from mosa_deploy.bundles.decode import encode
from mosa_deploy.bundles.gate import LabelledImage, check_gate, pack_images, read_gate, unpack_images
from mosa_deploy.bundles.record import Record
from mosa_deploy.bundles.validation import read_validation
from mosa_deploy.errors import BundleError, DataError
from tests.support.runs import small_bundle

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
LABELS = np.array([[1, 1], [0, 0], [0, 1]], dtype=np.uint8)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    bundle = small_bundle()
    record = bundle.record.model_copy(update={"per_label": PerLabel.uncalibrated(2), "temperature": 1.0})
    return replace(bundle, record=record)


@pytest.fixture
def run(bundle: Bundle, tmp_path: Path) -> Path:
    bundle.save(tmp_path)
    write_samples(tmp_path, Samples(PIXELS, PIXELS, LABELS))
    return tmp_path


def test_labels_of_validation_images_travel_in_the_mosa_file(run: Path) -> None:
    packed = Archive.unpack(Archive.of(run).pack(), 1 << 20)
    assert packed.bundle().record.multi_label
    assert [image.label for image in packed.validation] == [("río", "sea"), (), ("sea",)]


def test_labels_of_another_number_are_refused(run: Path, bundle: Bundle) -> None:
    write_samples(run, Samples(PIXELS, PIXELS, np.zeros((3, 5), dtype=np.uint8)))
    with pytest.raises(DataError, match=r"^calibration\.npz has 5 labels, the task 2: copy the run again$"):
        read_validation(run, bundle.record)


def test_calibration_images_keep_their_labels(run: Path) -> None:
    samples = read_samples(run, (8, 8))
    assert samples is not None
    assert samples.labels.tolist() == LABELS.tolist()


def test_names_with_marks_of_the_format_come_back_from_a_zip() -> None:
    labels: list[str | tuple[str, ...]] = ["a|b", ("a|b", "c/d"), ("%",), ()]
    images = tuple(LabelledImage(f"{i}.png", label, b"x") for i, label in enumerate(labels))
    assert unpack_images(pack_images(images)) == images


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A folder of two images, for a table."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(encode(PIXELS["ab".index(name[0])]))
    return tmp_path


def test_a_gate_may_be_a_folder_with_a_table(listed: Path, bundle: Bundle) -> None:
    (listed / "labels.csv").write_text("file,labels\na.png,río; sea\nb.png,\n")
    found = check_gate(read_gate(listed, bundle.record), bundle.record)
    assert [(image.name, image.label) for image in found] == [("00000.png", ("río", "sea")), ("00001.png", ())]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,labels\na.png,lake\n", r"labels\.csv:2: unknown class 'lake'; known: río, sea"),
        ("file,labels\nc.png,sea\n", r"labels\.csv:2: No such file or directory: mend the row"),
        ("file,label\na.png,sea\n", r"labels\.csv: give it the columns file and labels, and a row for each image"),
        ("", r"labels\.csv: give it the columns file and labels, and a row for each image"),
    ],
    ids=["unknown label", "missing file", "no labels", "empty"],
)
def test_a_table_of_a_gate_that_cannot_be_used(listed: Path, bundle: Bundle, text: str, said: str) -> None:
    (listed / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        read_gate(listed, bundle.record)


def test_images_with_several_labels_are_none_of_a_task_with_one_class() -> None:
    two = LabelledImage("0.png", ("río", "sea"), b"x")
    with pytest.raises(BundleError, match=r"^gate: 0\.png has 2 labels, and the task answers with one class per"):
        check_gate([two], small_bundle().record)


def test_a_record_has_a_threshold_for_each_label(bundle: Bundle) -> None:
    fields = bundle.record.model_dump() | {"per_label": PerLabel.uncalibrated(3).model_dump()}
    with pytest.raises(ValueError, match="3 thresholds for 2 classes"):
        Record.model_validate(fields)
