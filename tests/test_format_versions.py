"""Earlier format versions are read, newer ones are refused; `tests/fixtures/README.md` says what the files are."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.calibration import read_samples
from mosa_deploy.bundles.decision import DECISION_FORMAT, NOTE_FORMAT, Decision, ExportNote, parse_note
from mosa_deploy.bundles.decode import Decode
from mosa_deploy.bundles.format_version import FileFormat
from mosa_deploy.bundles.graph_index import INDEX_FORMAT, read_index
from mosa_deploy.bundles.record import RECORD_FORMAT, read_record
from mosa_deploy.runtimes.tensorrt_record import ENGINES_FORMAT, read_records
from serving.storage import LocalFiles
from serving.store import TaskStore
from tests.support.app import running, scores
from tests.support.files import files_of
from training.config import TuneConfig
from training.evaluate import evaluate
from training.options import EvaluateConfig
from training.run import read_settings
from training.run_settings import RUN_FORMAT
from training.tune import tune

FIXTURES = Path(__file__).parent / "fixtures"
V1 = FIXTURES / "v1"
BACKBONE = Path("store/backbones/vit_tiny_patch16_224-8cd1bd08")
LIMIT = 10 << 20


def decision(root: Path) -> Decision:
    return TaskStore(LocalFiles(root / "store"), LIMIT).decision("birds")


def note(root: Path) -> ExportNote:
    return parse_note((root / "export.json").read_bytes(), str(root / "export.json"))


class Case(NamedTuple):
    """A format, a file of it below a folder, and what reads that."""

    format: FileFormat
    file: str
    read: Callable[[Path], Any]


CASES = [
    Case(RECORD_FORMAT, "run/adapter.json", lambda root: read_record(root / "run")),
    Case(INDEX_FORMAT, f"{BACKBONE}/graph.json", lambda root: read_index(root / BACKBONE)),
    Case(ENGINES_FORMAT, "engine.json", read_records),
    Case(DECISION_FORMAT, "store/decisions/birds.json", decision),
    Case(
        NOTE_FORMAT,
        "export.json",
        lambda root: parse_note((root / "export.json").read_bytes(), str(root / "export.json")),
    ),
    Case(RUN_FORMAT, "run/config.json", lambda root: read_settings(root / "run")),
]

every_format = pytest.mark.parametrize("case", CASES, ids=lambda case: case.format.name)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the files of version 1."""
    return Path(shutil.copytree(V1, tmp_path / "v1"))


@every_format
def test_every_version_has_a_file_that_is_read(case: Case) -> None:
    for version in range(1, case.format.newest + 1):
        assert case.read(FIXTURES / f"v{version}")


def test_the_versions_of_a_runs_settings_say_the_same() -> None:
    for version in range(2, RUN_FORMAT.newest + 1):
        assert read_settings(FIXTURES / f"v{version}" / "run") == read_settings(V1 / "run")


def refusal(case: Case, root: Path, **changes: Any) -> str:
    """What is said of a file with other fields; it calls the file `FILE`."""
    path = root / case.file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(case.format.error) as caught:
        case.read(root)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(path), "FILE")


@every_format
def test_a_newer_version_is_refused_before_the_rest_is_read(copied: Path, case: Case) -> None:
    newer, newest = case.format.newest + 1, case.format.newest
    said = refusal(case, copied, format_version=newer, a_field_of_tomorrow=1)
    assert said == f"FILE has format version {newer}, this release reads 1 to {newest}: upgrade mosa-deploy"


@every_format
@pytest.mark.parametrize("version", ["1", 0, -1, 1.0, True, [1]], ids=repr)
def test_what_is_no_version_is_refused(copied: Path, case: Case, version: object) -> None:
    expected = f"FILE has format version {version!r}, which no {case.format.name} has: {case.format.remedy}"
    assert refusal(case, copied, format_version=version) == expected


@every_format
def test_a_version_of_null_is_refused(copied: Path, case: Case) -> None:
    assert refusal(case, copied, format_version=None) == f"FILE states no format version: {case.format.remedy}"


@pytest.mark.parametrize("case", CASES[:-1], ids=lambda case: case.format.name)
def test_a_version_that_is_missing_is_refused(copied: Path, case: Case) -> None:
    path = copied / case.file
    fields = json.loads(path.read_text())
    del fields["format_version"]
    path.write_text(json.dumps(fields))
    assert refusal(case, copied) == f"FILE states no format version: {case.format.remedy}"


@every_format
@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 200_000], ids=["empty", "half", "list", "deep"])
def test_what_is_no_object_is_refused_in_one_line(copied: Path, case: Case, content: str) -> None:
    (copied / case.file).write_text(content)
    with pytest.raises(case.format.error) as caught:
        case.read(copied)
    assert str(caught.value).endswith(f": {case.format.remedy}")
    assert "\n" not in str(caught.value)


def test_a_bundle_of_version_1_is_read_with_every_field() -> None:
    written = json.loads((V1 / "run" / "adapter.json").read_text()) | {"format_version": RECORD_FORMAT.newest}
    read = Bundle.load(V1 / "run").record.model_dump(mode="json")
    for part in ("adapter", "backbone", "preprocess"):
        assert read.pop(part).items() >= written.pop(part).items()
    assert {name: read[name] for name in written} == written


def test_a_record_of_version_1_means_what_it_always_meant() -> None:
    record = read_record(V1 / "run")
    assert record.backbone.model_args is None
    assert (record.preprocess.resampler, record.preprocess.crop_offset) == ("pillow", "rounded")
    assert record.preprocess.decode == Decode()


def test_a_mosa_file_of_version_1_unpacks_and_packs_to_the_same_bytes() -> None:
    content = (V1 / "birds.mosa").read_bytes()
    archive = Archive.unpack(content, LIMIT)
    assert archive.bundle().record.task == "birds"
    assert archive.pack() == content


def test_engine_records_of_version_1_are_read() -> None:
    found = {name: (record.precision, record.parity) for name, record in read_records(V1).items()}
    assert found == {"folded.fp16.sm86.engine": ("fp16", "deferred"), "folded.int8.sm89.engine": ("int8", 0.0125)}


def test_decisions_of_version_1_are_read() -> None:
    found = decision(V1)
    assert found.previous == found.exported != found.current
    assert found.current == Archive.unpack((V1 / "birds.mosa").read_bytes(), LIMIT).key
    assert TaskStore(LocalFiles(V1 / "store"), LIMIT).decision("fields").pinned


def test_a_decision_of_version_1_and_2_says_the_same() -> None:
    written = decision(FIXTURES / "v2")
    assert [version.source for version in written.versions] == ["upload", "export"]
    assert decision(V1) == written.model_copy(
        update={"versions": tuple(each.model_copy(update={"added": None}) for each in written.versions)}
    )


def test_an_index_of_version_1_has_no_scales() -> None:
    index = read_index(V1 / BACKBONE)
    assert not any(index.bank_scales(file) for file in index.files)


def test_the_scales_of_a_file_s_banks_are_powers_of_two() -> None:
    scales = read_index(FIXTURES / "v2" / BACKBONE).bank_scales("shared.int8.onnx")
    assert scales["blocks.0.down"].tolist() == [1, 0.5, 8, *[1] * 9]


@pytest.mark.parametrize("task", ["birds", "cracks", "fields"])
def test_a_store_of_version_1_gives_the_scores_of_its_time(copied: Path, task: str) -> None:
    expected = json.loads((V1 / "expected.json").read_text())[task]
    with running(copied / "store") as client:
        answer = client.post("/classify", files={"image": (V1 / "image.png").read_bytes()}, data={"task": task})
    assert scores(answer) == pytest.approx(expected, abs=1e-5)


def test_a_run_of_version_1_states_no_version_and_is_read() -> None:
    written = json.loads((V1 / "run" / "config.json").read_text())
    assert "format_version" not in written
    read = read_settings(V1 / "run")
    assert {name: read[name] for name in written} == written
    assert read["format_version"] == RUN_FORMAT.newest


def test_a_run_of_version_1_is_resumed_by_the_same_flags(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(copied)
    recipe: dict[str, Any] = {"epochs": 1, "bottleneck": 1, "experts": 2, "scale": 1.0, "batch_size": 16, "lr": 1e-2}
    tune(TuneConfig(task="digits", device="cpu", out=copied / "run", resume=True, **recipe))
    assert "is finished" in capsys.readouterr().out
    assert files_of(copied) == before


def test_a_run_of_version_1_is_evaluated_as_it_was() -> None:
    figures = evaluate(EvaluateConfig(bundle=V1 / "run", device="cpu"))
    expected = json.loads((V1 / "evaluated.json").read_text())
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-4)


def test_calibration_images_of_version_1_are_read() -> None:
    samples = read_samples(V1 / "run", (32, 32))
    assert samples is not None
    assert len(samples.images) == len(samples.validation) == len(samples.labels) == 8
