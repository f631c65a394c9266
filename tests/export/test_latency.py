"""The command: what is timed, the table, and what is refused."""

import csv
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from export.latency import choose_runners, files_of, main, subject
from export.options import QUICK, VARIANTS, LatencyConfig
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.errors import BackboneError, ConfigError, ProviderError
from tests.support.runs import BACKBONE, make_run


@dataclass(frozen=True)
class Printed:
    """What a run of the command line left."""

    folder: Path
    stdout: str

    @property
    def rows(self) -> dict[tuple[str, int], dict[str, str]]:
        with (self.folder / "latency.csv").open() as handle:
            rows = [row for row in csv.DictReader(handle) if row["precision"] == "fp32"]
        return {(row["variant"], int(row["bottleneck"])): row for row in rows}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Printed:
    folder, stdout = tmp_path_factory.mktemp("latency"), StringIO()
    flags = "--backbone vit_tinyd6_patch4_32.cifar10 --bottlenecks 16 8 --variants folded control"
    flags += " --runners onnxruntime-cpu --precisions int8 fp32 --seconds 0.2 --sessions 3 --batch-sizes 1 --threads 1"
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout):
        patch.setattr(sys, "argv", ["latency", *flags.split(), "--out", str(folder)])
        main()
    return Printed(folder, stdout.getvalue())


def test_the_table_has_one_line_per_precision_variant_and_bottleneck_and_is_kept_with_the_machine(
    printed: Printed,
) -> None:
    lines = [line for line in printed.stdout.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.split("|")[1:6]] for line in lines[2:]]
    runner = "onnxruntime-cpu"
    wanted = [("plain", ""), ("control", ""), ("folded", "8"), ("folded", "16")]
    assert cells == [[runner, precision, *names, "1"] for precision in ("fp32", "int8") for names in wanted]
    assert (printed.folder / "latency.md").read_text().split("\n\n")[2].strip() == "\n".join(lines)
    text = (printed.folder / "latency.md").read_text()
    assert "vit_tinyd6_patch4_32.cifar10, r = 8, 16" in text
    assert f"torch {torch.__version__.split('+')[0]}" in text
    assert " cores, " in text


def test_every_variant_has_as_many_rounds_nodes_and_a_ratio_to_plain(printed: Printed) -> None:
    rows = printed.rows
    assert len({row["rounds"] for row in rows.values()}) == 1
    assert int(rows["plain", 0]["rounds"]) >= 10
    assert {row["sessions"] for row in rows.values()} == {"3"}
    assert len({(row["nodes"], row["optimised_nodes"]) for row in rows.values()}) == 1
    assert {rows["plain", 0][name] for name in ("ratio", "ratio_low", "ratio_high", "flop_ratio")} == {"1.0"}
    for row in rows.values():
        assert float(row["ratio_low"]) <= float(row["ratio"]) <= float(row["ratio_high"])


def test_the_flop_ratio_and_the_size_of_the_run_are_those_of_the_wider_feed_forward(printed: Printed) -> None:
    tokens, dim, depth = 64, 192, 6
    block = tokens * dim * (3 * dim + dim + 2 * 768) + 2 * tokens * tokens * dim
    plain = tokens * 48 * dim + depth * block + dim * 10
    for r in (8, 16):
        ratio = 1 + depth * 2 * tokens * dim * r / plain
        assert float(printed.rows["folded", r]["flop_ratio"]) == pytest.approx(ratio, abs=1e-9)
    assert float(printed.rows["control", 0]["flop_ratio"]) == 1.0
    more = float(printed.rows["folded", 16]["megabytes"]) - float(printed.rows["folded", 8]["megabytes"])
    assert more == pytest.approx(depth * 8 * (2 * dim + 1) * 4 / 1e6, abs=1e-3)


def test_the_plot_is_a_picture_with_something_on_it(printed: Printed) -> None:
    with Image.open(printed.folder / "latency.png") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] > 500
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"backbone": None}, "give either --bundle FOLDER or --backbone NAME"),
    ({"bundle": Path("runs/x")}, "give either --bundle FOLDER or --backbone NAME"),
    (
        {"backbone": None, "bundle": Path("runs/x"), "bottlenecks": (4,)},
        "--bottlenecks: a bundle has its own, give them with --backbone",
    ),
    ({"variants": ()}, f"--variants: give at least one of {', '.join(VARIANTS)}"),
    ({"variants": ("foldet",)}, "unknown variant 'foldet'; did you mean folded or unfolded?"),
    (
        {"runners": ()},
        "--runners: give at least one of onnxruntime-cpu, onnxruntime-cuda, openvino, openvino-bf16",
    ),
    ({"precisions": ("fp8",)}, "unknown precision 'fp8'; did you mean fp32 or fp16?"),
    ({"runners": ("openvino-b16",)}, "unknown runner 'openvino-b16'; did you mean openvino-bf16 or openvino?"),
    ({"bottlenecks": (16, 0)}, "--bottlenecks 0: at least 1"),
    ({"batch_sizes": ()}, "--batch-sizes: give at least one"),
    ({"batch_sizes": (-1,)}, "--batch-sizes -1: at least 1"),
    ({"sessions": 2}, "--sessions 2: at least 3, fewer give no interval"),
    ({"threads": -1}, "--threads -1: 0 for all cores, or how many"),
    (
        {"threads": -1, "sessions": 1},
        "--sessions 1: at least 3, fewer give no interval; --threads -1: 0 for all cores, or how many",
    ),
]


def test_a_runner_is_timed_with_the_files_that_suit_it_each_precision_beside_its_own_plain_graph() -> None:
    found = files_of(["onnxruntime-cpu", "onnxruntime-cuda", "openvino-bf16"], ("int8", "fp16", "fp32"))
    assert found == [
        ("onnxruntime-cpu", "fp32"),
        ("onnxruntime-cuda", "fp32"),
        ("openvino-bf16", "fp32"),
        ("onnxruntime-cuda", "fp16"),
        ("onnxruntime-cpu", "int8"),
        ("openvino-bf16", "int8"),
    ]


def test_a_precision_that_suits_no_chosen_runner_is_refused_with_those_that_it_suits() -> None:
    with pytest.raises(
        ConfigError, match=r"^--precisions fp16: openvino would run it slower than fp32; it suits onnxr"
    ):
        files_of(["openvino"], ("fp32", "fp16"))


@pytest.mark.parametrize(("options", "text"), FAULTS, ids=[text[:30] for _, text in FAULTS])
def test_what_cannot_be_is_refused_before_anything_is_loaded(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LatencyConfig(**{"backbone": BACKBONE} | options)
    assert str(caught.value) == text


def test_an_empty_list_of_variants_is_one_line_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["latency", "--backbone", BACKBONE, "--variants", "--seconds", "1"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err.splitlines() == [f"error: --variants: give at least one of {', '.join(VARIANTS)}"]


def test_plain_is_always_timed_and_a_bundle_is_a_quick_look() -> None:
    assert LatencyConfig(backbone=BACKBONE, variants=("shared", "folded")).chosen_variants == [
        "plain",
        "folded",
        "shared",
    ]
    assert LatencyConfig(backbone=BACKBONE).chosen_variants == list(VARIANTS)
    assert LatencyConfig(bundle=Path("x")).chosen_variants == list(QUICK)


def test_without_names_every_runner_that_is_here_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = choose_runners(None)
    assert found[0] == "onnxruntime-cpu"
    assert ("onnxruntime-cuda" in found) == torch.cuda.is_available()
    assert choose_runners(["onnxruntime-cpu", "onnxruntime-cpu"]) == ["onnxruntime-cpu"]
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert not any(name.startswith("openvino") for name in choose_runners(None))
    with pytest.raises(ProviderError, match=r"^OpenVINO is not installed: "):
        choose_runners(["openvino"])


def test_a_backbone_alone_is_timed_with_random_tasks_of_each_bottleneck() -> None:
    given = subject(LatencyConfig(backbone=BACKBONE, random_weights=True, bottlenecks=(6, 3, 6)))
    assert given.words == f"{BACKBONE}, r = 3, 6"
    assert [len(tasks) for tasks in given.tasks.values()] == [8, 8]
    for r, tasks in given.tasks.items():
        assert all(task.weights["blocks.7.down"].shape == (64, r) for task in tasks)
        assert not np.array_equal(tasks[0].weights["blocks.7.up"], tasks[1].weights["blocks.7.up"])
    (r,) = subject(LatencyConfig(backbone=BACKBONE, random_weights=True)).tasks
    assert r == 64


def test_a_bundle_is_timed_with_its_own_backbone_rows_and_head(parts_run: Path) -> None:
    given = subject(LatencyConfig(bundle=parts_run))
    assert given.words == f"parts on {BACKBONE}, r = 4"
    own = load_backbone(BACKBONE, Weights("random"))
    name = "patch_embed.proj.weight"
    assert given.model.get_parameter(name).equal(own.get_parameter(name))
    (tasks,) = given.tasks.values()
    assert tasks[0].head.shape == (3, 64)
    assert tasks[0].weights["blocks.7.up"].shape == (4, 64)
    assert {task.weights["blocks.7.up"].shape for task in tasks} == {(4, 64)}


def test_a_bundle_of_a_weights_file_is_timed_with_that_file_only(tmp_path: Path) -> None:
    file = tmp_path / "own.safetensors"
    save_file(load_backbone(BACKBONE, Weights("random")).state_dict(), file)
    make_run(tmp_path / "run", Weights("file", file))
    with pytest.raises(BackboneError, match=r"give it again with --backbone-weights$"):
        subject(LatencyConfig(bundle=tmp_path / "run"))
    subject(LatencyConfig(bundle=tmp_path / "run", backbone_weights=file))


def test_a_linear_task_has_nothing_to_time(parts_run: Path, tmp_path: Path) -> None:
    parts = Bundle.load(parts_run)
    record = parts.record.model_copy(update={"method": "linear", "form": "merged", "adapter": None})
    head = {name: value for name, value in parts.tensors.items() if name.startswith("head.")}
    Bundle(record, head, parts.canary).save(tmp_path)
    with pytest.raises(ConfigError, match=r"^'parts' has no adapter to time: give a bundle"):
        subject(LatencyConfig(bundle=tmp_path))
