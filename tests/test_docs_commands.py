"""The commands of the docs' first pages, run in their order in one folder, as a reader works through them."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest
import torch

from mosa_deploy.backbones.load import Weights, load_backbone
from tests.support.documents import JOBS, ask, command_lines, serving, shell, verb, write_flowers, write_scenes
from tests.support.peft_models import CLASSES, NAME, of_transformers
from tests.support.walker import ROOT

PAGES = ("quickstart", "your-images", "bring")
LINES = [line for page in PAGES for line in command_lines(ROOT / "docs" / f"{page}.md")]
REQUESTS = {"ask", "curl"}


def lines_of(verbs: set[str]) -> list[str]:
    """The pages' command lines that do so, each once."""
    return [line for line in dict.fromkeys(LINES) if verb(line) in verbs]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a reader has it: flowers, an adapter of PEFT's on a small ViT of transformers, a tuned checkpoint."""
    write_flowers(tmp_path)
    of_transformers(tmp_path / "adapter", tmp_path / "vit", target_modules=["q_proj", "v_proj"])
    tuned = load_backbone(NAME, Weights("file", tmp_path / "vit" / "model.safetensors"), CLASSES)
    torch.save(tuned.state_dict(), tmp_path / "tuned.pth")
    return tmp_path


def test_every_command_is_run_here() -> None:
    assert [line for line in LINES if verb(line) not in JOBS | REQUESTS | {"python", "serve"}] == []


@pytest.mark.slow
def test_the_page_on_several_labels_leads_to_an_answer(tmp_path: Path) -> None:
    write_scenes(tmp_path)
    lines = command_lines(ROOT / "docs" / "multi-label.md")
    assert {verb(line) for line in lines} <= JOBS | REQUESTS | {"serve"}
    for line in lines:
        if verb(line) in JOBS:
            shell(line, tmp_path)
    assert (tmp_path / "scenes.csv").read_text().startswith("file,class,score\nscenes/0.png,")
    (serve,) = (line for line in lines if verb(line) == "serve")
    with serving(serve, tmp_path) as server:
        first, second, by_ask = (ask(line, server, tmp_path) for line in lines if verb(line) in REQUESTS)
    assert json.loads(first)["task"] == "scenes"
    assert len(json.loads(second)["predictions"]) == 2
    assert by_ask.startswith("scene.jpg: scenes: ")


@pytest.mark.slow
def test_the_page_on_many_tasks_leads_to_a_service(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    fleet, serve = command_lines(ROOT / "docs" / "fleet.md")
    shell(fleet, tmp_path)
    with serving(serve, tmp_path) as server:
        tasks = json.loads(ask("curl http://localhost:3000/v1/tasks", server, tmp_path))["tasks"]
    assert len(tasks) == 6
    assert {task["state"] for task in tasks} == {"active"}


@pytest.mark.slow
def test_the_page_on_the_hub_leads_to_a_store(digits_run: Path, tmp_path: Path) -> None:
    shutil.copytree(digits_run, tmp_path / "runs" / "digits")
    for line in command_lines(ROOT / "docs" / "hub.md"):
        shell(line, tmp_path)
    assert (tmp_path / "artifacts" / "tasks" / "digits" / "folded.onnx").is_file()


@pytest.mark.slow
def test_the_page_on_archives_leads_to_a_table(store: Path, tmp_path: Path) -> None:
    write_flowers(tmp_path)
    shutil.copytree(store, tmp_path / "artifacts")
    install, *lines = command_lines(ROOT / "docs" / "archives.md")
    assert verb(install) == "pip"
    assert [verb(line) for line in lines] == ["score"]
    shell(lines[0], tmp_path)
    found = pyarrow.parquet.read_table(tmp_path / "scores").to_pylist()
    assert {(row["task"], row["file"]) for row in found} >= {
        ("digits", "rose/0.jpg"),
        ("sprites-location", "violet/14.jpg"),
    }


@pytest.mark.slow
def test_the_pages_lead_to_answers(folder: Path) -> None:
    for line in lines_of(JOBS | {"python"}):
        shell(line.replace("--backbone vit_base_patch16_224 ", f"--backbone {NAME} "), folder)
    assert (folder / "predictions.csv").read_text().startswith("file,class,score\nimage.png,")
    (serve,) = lines_of({"serve"})
    with serving(serve, folder) as server:
        answers = [ask(line, server, folder) for line in lines_of(REQUESTS)]
        tasks = json.loads(ask("curl http://localhost:3000/v1/tasks", server, folder))["tasks"]
    assert [answer.split(": ")[:2] for answer in answers if not answer.startswith("{")] == [
        ["image.png", "digits"],
        ["rose.jpg", "flowers"],
    ]
    assert [task["task"] for task in tasks if task["state"] == "active"] == ["digits", "flowers", "scratches"]
