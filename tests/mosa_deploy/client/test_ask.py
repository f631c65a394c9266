import json
from pathlib import Path

import pytest

from mosa_deploy.cli import ask
from mosa_deploy.errors import command
from tests.support.fake_service import Reply, StartService
from tests.support.images import write_images

BIRD = {
    "task": "birds",
    "predictions": [{"label": "heron", "score": 0.8125}, {"label": "crane", "score": 0.125}],
    "bundle": "3f0c8b5a9d21ffff",
    "milliseconds": 4.25,
}
FAILURE = {"task": "dogs", "status": 404, "detail": "unknown task 'dogs'"}


@pytest.fixture(autouse=True)
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOSA_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").write_bytes(b"the image")


def run(*arguments: str) -> int:
    """The exit code of `mosa ask` with these arguments."""
    try:
        command(lambda: ask(arguments))()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_an_answer_is_one_line(start_service: StartService, capsys: pytest.CaptureFixture[str]) -> None:
    service = start_service(Reply(200, json.dumps({"results": [BIRD]})))
    assert run("photo.jpg", "--task", "birds", "--address", service.address) == 0
    assert capsys.readouterr().out == ("photo.jpg: birds: heron 0.812, crane 0.125   (bundle 3f0c8b5a9d21, 4.2 ms)\n")


def test_the_image_and_all_tasks_are_sent(start_service: StartService, monkeypatch: pytest.MonkeyPatch) -> None:
    service = start_service(Reply(200, json.dumps({"results": [BIRD]})))
    run("photo.jpg", "--task", "birds", "--task", "dogs", "--address", service.address)
    body = service.received[0].body
    assert b"the image" in body
    assert b"birds,dogs" in body


def test_the_address_is_taken_from_the_environment(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start_service(Reply(200, json.dumps({"results": [BIRD]})))
    monkeypatch.setenv("MOSA_ADDRESS", service.address)
    assert run("photo.jpg", "--task", "birds") == 0
    assert len(service.received) == 1


def test_a_result_without_an_answer_ends_with_2_after_the_others(
    start_service: StartService, capsys: pytest.CaptureFixture[str]
) -> None:
    service = start_service(Reply(200, json.dumps({"results": [FAILURE, BIRD]})))
    assert run("photo.jpg", "--task", "dogs", "--task", "birds", "--address", service.address) == 2
    said = capsys.readouterr()
    first, second = said.out.splitlines()
    assert first == "photo.jpg: dogs: no answer (404): unknown task 'dogs'"
    assert second.startswith("photo.jpg: birds: heron")
    assert said.err == "error: one result has no answer, see above\n"


def test_a_missing_image_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("nowhere.jpg", "--task", "birds") == 2
    assert capsys.readouterr().err == "error: nowhere.jpg: no such file or folder; give images, or folders of images\n"


def test_a_service_that_does_not_answer_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("photo.jpg", "--task", "birds", "--address", "http://127.0.0.1:9") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the service does not answer (")
    assert said.count("\n") == 1


def test_a_folder_is_asked_image_by_image_and_the_rest_is_counted(
    start_service: StartService, capsys: pytest.CaptureFixture[str]
) -> None:
    service = start_service(Reply(200, json.dumps({"results": [BIRD]})))
    write_images(Path("photos"), "b.jpg", "a.JPG", "clip.mov", ".DS_Store")
    assert run("photos", "--task", "birds", "--address", service.address) == 0
    counted, *answers = capsys.readouterr().out.splitlines()
    assert counted == "left out as no images: 1 .mov; skipped as leftovers of systems and tools: 1 .DS_Store"
    assert [answer.split(":")[0] for answer in answers] == ["photos/a.JPG", "photos/b.jpg"]


def test_an_image_that_the_service_refuses_does_not_end_the_others(
    start_service: StartService, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = Reply(415, '{"detail": "not an image of a known type"}')
    service = start_service(refused, Reply(200, json.dumps({"results": [BIRD]})))
    write_images(Path("photos"), "a.jpg", "b.jpg")
    assert run("photos", "--task", "birds", "--address", service.address) == 2
    first, second = capsys.readouterr().out.splitlines()
    assert first == "photos/a.jpg: birds: no answer (415): not an image of a known type"
    assert second.startswith("photos/b.jpg: birds: heron")


def test_an_unknown_image_is_shown_without_a_class(
    start_service: StartService, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = BIRD | {"predictions": [], "unknown": 0.998, "abstained": True}
    untold = BIRD | {"note": "the bundle of 'birds' has no statistics"}
    service = start_service(Reply(200, json.dumps({"results": [unknown, untold]})))
    assert run("photo.jpg", "--task", "birds", "--abstain", "0.99", "--address", service.address) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "photo.jpg: birds: no class   (bundle 3f0c8b5a9d21, 4.2 ms, unknown 0.998)"
    assert second.endswith("4.2 ms); the bundle of 'birds' has no statistics")
    assert b"0.99" in service.received[0].body


def test_features_are_one_line_of_json(start_service: StartService, capsys: pytest.CaptureFixture[str]) -> None:
    found = {"backbone": "vit", "embedding": [0.5, -0.25], "milliseconds": 4.0}
    service = start_service(Reply(200, json.dumps({"results": [found]})))
    assert run("photo.jpg", "--embed", "--normalise", "--address", service.address) == 0
    assert json.loads(capsys.readouterr().out) == {"file": "photo.jpg", **found}
    assert (service.received[0].path, b"normalise" in service.received[0].body) == ("/v1/embed", True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task", "birds", "--abstain", "1.5"], "--abstain 1.5: a number from 0 to 1"),
        (["--task", "birds", "--normalise"], "--backbone and --normalise are for features: add --embed"),
        (
            ["--embed", "--abstain", "0.5"],
            "--abstain, --threshold and --top-k are for classes: leave them out, or --embed",
        ),
        (["--embed", "--task", "a", "--backbone", "b"], "--backbone means its plain features: give it, or --task"),
        ([], "the following arguments are required: --task"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("photo.jpg", *arguments) == 2
    assert said in capsys.readouterr().err
