"""The GPU's benchmark runs from end to end on the CPU; what it times is what the library does."""

import csv
import importlib.util
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from benchmarks import gpu, gpu_plan, gpu_timing
from benchmarks.gpu_files import FILES, IN_FLIGHT, LOADS
from benchmarks.gpu_models import (
    CONTROL,
    FOLDED,
    INFERENCE,
    LOW_RANK,
    MIXED,
    PEFT,
    PLAIN,
    SHARED,
    STEPS,
    TASKS,
    UNFOLDED,
    TrainingStep,
    Variant,
    adapted,
    inference_variants,
)
from benchmarks.gpu_report import NOT_MEASURED, Row, tables
from benchmarks.step import TwoForwards
from mosa_deploy.adapters.attach import attach
from mosa_deploy.bundles.preprocess import Preprocess
from mosa_deploy.errors import ConfigError
from tests.support.walker import ROOT
from training.data import Images, normalise, whole
from training.loop import Trainer
from training.recipe import Recipe, adapter_config

TINY = (
    "--backbone vit_tinyd6_patch4_32.cifar10 --depth 1 --bottleneck 4 --training-batch 2 --training-bottleneck 4"
    " --device cpu --seconds 0.1 --compile-backend eager --commit abc --batch-sizes"
)
BLOCKED = (
    "tyro",
    "scipy",
    "sklearn",
    "matplotlib",
    "pydantic",
    "onnxruntime",
    "onnx",
    "joblib",
    "tests",
    "torchmetrics",
    "peft",
)

Toy = Callable[..., VisionTransformer]


def read(out: Path) -> list[dict[str, str]]:
    with (out / "gpu.csv").open() as handle:
        return list(csv.DictReader(handle))


def run(out: Path, flags: str, modes: Sequence[str] = ()) -> list[dict[str, str]]:
    chosen = ["--modes", *modes] if modes else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gpu", *flags.split(), *chosen, "--out", str(out)])
        gpu.main()
    return read(out)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a whole run."""
    folder = tmp_path_factory.mktemp("gpu")
    run(folder, f"{TINY} 1 3", modes=("eager", "CUDA graphs", "training", "compile"))
    return folder


def test_every_row_of_the_plan_is_measured_or_says_why_not(out: Path) -> None:
    rows = read(out)
    inference = [(mode, batch) for mode in ("eager", "CUDA graphs", "compile") for batch in ("1", "3")]
    planned = {(*cell, name) for cell in inference for name in INFERENCE} | {("training", "2", name) for name in STEPS}
    planned -= {(mode, "1", MIXED) for mode, _ in inference}
    planned -= {(mode, batch, PEFT) for mode, batch in inference if mode != "eager"}
    assert {(row["mode"], row["batch"], row["variant"]) for row in rows} == planned
    assert len(rows) == len(planned)
    for row in rows:
        if row["mode"] == "CUDA graphs":
            assert (row["note"], row["ms"]) == ("needs an NVIDIA GPU", "")
        elif row["variant"] != PEFT:
            assert row["note"] == ""
            assert int(row["rounds"]) >= 10
            assert float(row["ratio_low"]) <= float(row["ratio"]) <= float(row["ratio_high"])
            assert float(row["images_per_second"]) == pytest.approx(1000 * int(row["batch"]) / float(row["ms"]))
        elif row["note"]:
            assert row["note"] == "No module named 'peft'"


def test_the_table_names_machine_versions_command_and_absent_runtimes(out: Path) -> None:
    text = (out / "gpu.md").read_text()
    assert "python -m benchmarks.gpu --backbone vit_tinyd6_patch4_32.cifar10 --depth 1" in text
    assert f"torch {torch.__version__.split('+')[0]}" in text
    assert "timm 1." in text
    assert "commit abc" in text
    for name in ("tensorrt", "tensorrt_rtx"):
        assert f"{name}: {'not measured' if importlib.util.find_spec(name) else 'not installed'}" in text
    assert text.count("\n| eager | ") == 2 * len(INFERENCE) - 1
    assert text.count("\n| training | ") == 3


def test_the_flop_ratios_are_those_of_the_wider_feed_forward(out: Path) -> None:
    tokens, dim = 64, 192
    block = tokens * dim * (3 * dim + dim + 2 * 768) + 2 * tokens * tokens * dim
    wide = 1 + 2 * tokens * dim * 4 / (tokens * 48 * dim + block)
    found = {row["variant"]: float(row["flop_ratio"]) for row in read(out) if row["flop_ratio"]}
    assert {found[name] for name in (PLAIN, CONTROL, LOW_RANK)} == {1.0}
    for name in (FOLDED, UNFOLDED, SHARED, MIXED):
        assert found[name] == pytest.approx(wide, abs=1e-9)


def test_without_the_packages_that_the_gpu_machine_lacks_what_needs_them_says_so_and_the_rest_is_measured(
    tmp_path: Path,
) -> None:
    flags = [*TINY.split(), "2", "--modes", "eager", "training", "files", "service", "--out", str(tmp_path)]
    code = f"import sys, runpy; sys.modules.update(dict.fromkeys({BLOCKED}))\nsys.argv[1:] = {flags}\n"
    code += "runpy.run_module('benchmarks.gpu', run_name='__main__')"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=300, check=True, capture_output=True)
    rows = read(tmp_path)
    notes = {(row["mode"], row["variant"]): row["note"] for row in rows}
    of_export = {("files", name) for name in FILES} | {("service", name) for name in LOADS}
    assert notes.keys() == {
        *(("eager", name) for name in INFERENCE),
        *(("training", name) for name in STEPS),
        *of_export,
    }
    faults = {name: note for name, note in notes.items() if note}
    assert faults.keys() == {("eager", PEFT), *of_export}
    said = tuple(f"{start}{name}" for name in BLOCKED for start in ("import of ", "No module named '"))
    assert all(note.startswith(said) for note in faults.values())
    assert all(row["ms"] for row in rows if not row["note"])
    assert "peft: not installed" in (tmp_path / "gpu.md").read_text()


@pytest.mark.slow
def test_the_fp16_file_of_each_variant_is_timed_against_the_plain_one(tmp_path: Path) -> None:
    rows = run(tmp_path, f"{TINY} 2 --modes files")
    assert [row["variant"] for row in rows] == list(FILES)
    for row in rows:
        assert (row["note"], row["flop_ratio"]) == ("", "")
        assert float(row["ms"]) > 0
    assert {row["ratio"] for row in rows if row["variant"] == PLAIN} == {"1.0"}


@pytest.mark.slow
def test_the_service_is_timed_by_the_images_that_it_answers(tmp_path: Path) -> None:
    rows = run(tmp_path, f"{TINY} 1 --modes service --minutes 20")
    assert [(row["batch"], row["variant"]) for row in rows] == [(str(n), name) for n in IN_FLIGHT for name in LOADS]
    for row in rows:
        assert row["note"] == ""
        assert float(row["images_per_second"]) == pytest.approx(1000 * int(row["batch"]) / float(row["ms"]))


def test_with_no_time_left_every_row_says_not_measured(tmp_path: Path) -> None:
    rows = run(tmp_path, f"{TINY} 1 --modes eager training files service --minutes 0")
    assert len(rows) == len(INFERENCE) - 1 + len(STEPS) + len(FILES) - 1 + len(IN_FLIGHT) * len(LOADS)
    assert {row["note"] for row in rows} == {NOT_MEASURED}
    assert {row["ms"] for row in rows} == {""}
    assert (tmp_path / "gpu.md").read_text().count(f"| {NOT_MEASURED} |") == len(rows)


@pytest.mark.slow
def test_what_is_finished_is_kept_when_the_command_is_interrupted(tmp_path: Path) -> None:
    flags = [*TINY.split(), "1", "2", "--modes", "eager", "--out", str(tmp_path), "--seconds", "5"]
    # Where the tests are a background job of a shell they ignore the signal, and so would the command.
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu", *flags],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=listening,
    )
    end = time.monotonic() + 200
    while time.monotonic() < end and not ((tmp_path / "gpu.csv").exists() and any(r["ms"] for r in read(tmp_path))):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.decode().endswith("interrupted; what was finished is kept\n")
    rows = read(tmp_path)
    assert all(row["ms"] for row in rows if row["batch"] == "1" and row["variant"] != PEFT)
    assert {row["note"] for row in rows if row["batch"] == "2"} == {NOT_MEASURED}
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["gpu.csv", "gpu.md"]


def test_a_mode_that_fails_is_named_in_its_rows_and_the_others_go_on(tmp_path: Path) -> None:
    rows = run(tmp_path, f"{TINY} 1 --modes eager compile --compile-backend nonsense")
    notes = {(row["mode"], row["variant"]): row["note"] for row in rows}
    assert notes["eager", PLAIN] == notes["eager", SHARED] == ""
    assert all("nonsense" in note for (mode, _), note in notes.items() if mode == "compile")


@pytest.fixture
def bench() -> gpu.Bench:
    return gpu.Bench(gpu_plan.parse([*TINY.split(), "2"]), deadline=time.perf_counter() + 1000)


def test_a_variant_that_fails_leaves_the_others_to_be_compared(bench: gpu.Bench) -> None:
    (cell,) = (cell for cell in gpu_plan.plan(bench.config) if cell.mode == gpu_timing.EAGER)
    bench.build()
    bench.variants[FOLDED] = Variant(nn.Linear(3, 3).bfloat16())
    rows = {name: Row(cell.mode, cell.batch, name) for name in cell.variants}
    bench.measure(cell, rows, until=0.0)
    assert "mat1 and mat2 shapes cannot be multiplied" in rows[FOLDED].note
    assert rows[FOLDED].ms is None
    assert rows[UNFOLDED].note == ""
    assert rows[UNFOLDED].ratio is not None


def test_a_variant_is_not_prepared_when_the_time_would_not_suffice_for_the_slowest_one(bench: gpu.Bench) -> None:
    cell = gpu_plan.Cell(gpu_timing.EAGER, 2, (PLAIN, CONTROL))
    rows = {name: Row(cell.mode, cell.batch, name) for name in cell.variants}
    bench.slowest[gpu_timing.EAGER] = 2000.0
    assert bench.inference_calls(cell, rows) == {}
    bench.slowest[gpu_timing.EAGER] = 0.0
    assert list(bench.inference_calls(cell, rows)) == [PLAIN, CONTROL]


def features(variant: Variant, images: Tensor, **arguments: Any) -> Tensor:
    with torch.inference_mode():
        out: Tensor = variant.model(images, **(arguments or variant.arguments(len(images))))
    return out


def test_all_ways_to_give_an_adapter_answer_alike_and_unlike_the_plain_backbone(toy: Toy) -> None:
    plain = toy(num_classes=0)
    makers = inference_variants(plain, 3)
    made = {name: makers[name]() for name in INFERENCE if name != PEFT}
    images = torch.randn(TASKS + 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    answers = {name: features(variant, images) for name, variant in made.items()}
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-5)
    assert answers[CONTROL].equal(answers[PLAIN])
    close(answers[PLAIN], plain(images))
    close(answers[FOLDED], answers[UNFOLDED])
    close(answers[SHARED], answers[UNFOLDED])
    for name in (LOW_RANK, UNFOLDED):
        assert (answers[name] - answers[PLAIN]).abs().max() > 1e-3
    for task in range(TASKS):
        own = features(Variant(adapted(plain, 3, task)), images)
        close(answers[MIXED][task::TASKS], own[task::TASKS])
    assert (answers[MIXED] - answers[SHARED])[1].abs().max() > 1e-3


def test_pefts_mixed_batch_answers_each_sample_by_its_own_adapter(toy: Toy) -> None:
    pytest.importorskip("peft")
    variant = inference_variants(toy(num_classes=0), 3)[PEFT]()
    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).repeat(TASKS + 1, 1, 1, 1)
    mixed = features(variant, images)
    torch.testing.assert_close(mixed[0], mixed[TASKS])
    assert torch.pdist(mixed[:TASKS]).min() > 1e-3


@pytest.mark.parametrize(("experts", "forwards"), [(1, 1), (4, 1), (4, 2)])
def test_the_training_step_is_the_trainers(toy: Toy, experts: int, forwards: int) -> None:
    recipe = Recipe("toy", bottleneck=3, experts=experts, batch_size=4, lr=1e-3, dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 16, 16, 3), generator=generator, dtype=torch.uint8)
    batch = Images(pixels, torch.randint(0, 5, (4,), generator=generator), [])
    preprocess = Preprocess(size=(16, 16))
    pair = [attach(toy(), adapter_config(recipe), split=experts > 1).train() for _ in range(2)]
    kind = Trainer if forwards == 1 else TwoForwards
    trainer = kind(pair[0], batch, batch, preprocess, recipe, 0)
    for group in trainer.optimizer.param_groups:  # warm-up begins at a hundredth
        group["lr"] = recipe.lr
    step = TrainingStep(pair[1], normalise(pixels, preprocess), batch.labels, forwards, torch.float32)
    for _ in range(3):
        torch.testing.assert_close(step(), trainer.step(whole(batch))[0].sum())
    states = [model.state_dict() for model in pair]
    torch.testing.assert_close(states[1], states[0])
    assert not states[0]["blocks.0.adapter.up.weight"].equal(torch.zeros_like(states[0]["blocks.0.adapter.up.weight"]))


@pytest.mark.gpu
def test_a_captured_call_answers_as_the_eager_one(toy: Toy) -> None:
    images = torch.randn(2, 3, 16, 16, device="cuda")
    eager = partial(toy().cuda(), images)
    with torch.inference_mode():
        replay = gpu_timing.capture(eager)
        images.normal_()
        torch.testing.assert_close(replay(), eager())


@pytest.mark.gpu
def test_a_captured_call_keeps_its_images(toy: Toy) -> None:
    with torch.inference_mode():
        replay = gpu_timing.capture(partial(toy().cuda(), torch.randn(2, 3, 16, 16, device="cuda")))
        expected = replay().clone()
        taken = [torch.full((2, 3, 16, 16), float("nan"), device="cuda") for _ in range(64)]
        torch.testing.assert_close(replay(), expected)
        assert taken[0].isnan().all()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--batch-sizes 0 8", "--batch-sizes 0: at least 1"),
        ("--training-batch -1", "--training-batch -1: at least 1"),
        pytest.param(
            "--device cuda",
            "--device cuda: torch sees no NVIDIA GPU; install its driver, or try --device cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_a_flag_that_cannot_be_is_named(flags: str, text: str) -> None:
    with pytest.raises(ConfigError) as fault:
        gpu_plan.parse(flags.split())
    assert str(fault.value) == text


def test_training_rows_show_memory_where_it_was_measured() -> None:
    row = Row("training", 2, STEPS[0], rounds=10, ms=1.5, memory_mib=12.25, memory_ratio=1.5, note="")
    assert f"| training | 2 | {STEPS[0]} | 1.500 | - | - | - | 12.2 | 1.500 | 10 |  |" in tables([row])
