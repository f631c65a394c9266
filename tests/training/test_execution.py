"""How steps are computed: checkpointed blocks, compiled blocks, and what helps when memory is short."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from mosa_deploy.adapters.attach import attach, task_state
from mosa_deploy.backbones.load import Weights, load_backbone
from mosa_deploy.errors import TrainingError
from tests.support import swin
from tests.support.images import PREPROCESS, random_images
from tests.support.models import Toy, perturb
from training.data import whole
from training.devices import Computing
from training.execution import BlockForward, compiling, less_memory
from training.loop import Trainer
from training.recipe import Recipe, adapter_config
from training.tune_options import ExecutionOptions

RECIPE = Recipe(backbone="toy", bottleneck=4, experts=3, dropout=0.2, epochs=2, batch_size=8, lr=1e-3)

CHECKPOINTING, COMPILE = ExecutionOptions(checkpointing=True), ExecutionOptions(compile=True)


def make_trainer(
    toy: Toy, execution: ExecutionOptions, precision: str = "fp32", kind: str = "vit", **changes: Any
) -> Trainer:
    recipe = dataclasses.replace(RECIPE, **changes)
    model = toy(num_classes=3) if kind == "vit" else load_backbone(swin.NAME, Weights("random"), classes=3)
    torch.manual_seed(0)
    model.reset_classifier(3)
    perturb(attach(model, adapter_config(recipe)))
    train, validation = random_images(12, 3), random_images(6, 3, seed=1)
    if kind == "swin":
        train, validation = (
            dataclasses.replace(each, pixels=each.pixels.repeat(1, 2, 2, 1)) for each in (train, validation)
        )
    return Trainer(
        model, train, validation, PREPROCESS, recipe, 0, Computing("cpu", precision, execution or ExecutionOptions())
    )


def tuned(trainer: Trainer) -> dict[str, Tensor]:
    trainer.fit(lambda trainer: None)
    return task_state(trainer.model)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"activate": "balanced", "precision": "bf16"},
        {"adapt_blocks": 1},
        {"kind": "swin"},
        {"head_dropout": 0.3, "head_samples": 2},
    ],
    ids=["vit", "bf16", "last block", "swin", "head samples"],
)
def test_checkpointing_leaves_a_run_with_dropout_as_it_is_to_the_bit(toy: Toy, settings: dict[str, Any]) -> None:
    plain, checkpointed = (tuned(make_trainer(toy, each, **settings)) for each in (ExecutionOptions(), CHECKPOINTING))
    assert all(torch.equal(value, checkpointed[name]) for name, value in plain.items())


def test_checkpointing_computes_blocks_twice_in_training_and_once_in_validation(toy: Toy) -> None:
    trainer, calls = make_trainer(toy, CHECKPOINTING), list[bool]()
    trainer.model.get_submodule("blocks.0.block.attn").register_forward_hook(
        lambda module, *_: calls.append(module.training)
    )
    trainer.run_epoch(0)
    assert calls == [True] * 4
    trainer.validate()
    assert calls[4:] == [False]


def test_a_run_may_be_resumed_with_other_ways_of_computing_steps(toy: Toy, tmp_path: Path) -> None:
    unbroken = make_trainer(toy, ExecutionOptions(), dropout=0.0)
    unbroken.fit(lambda trainer: trainer.save(tmp_path / f"{trainer.state.epoch}.pt"))
    resumed = make_trainer(toy, ExecutionOptions(accumulate=3, checkpointing=True), dropout=0.0)
    resumed.load(tmp_path / "1.pt")
    expected = task_state(unbroken.model)
    for name, value in tuned(resumed).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def kept_bytes(trainer: Trainer) -> int:
    """What a step keeps for the backward pass; weights count whenever they are used."""
    sizes: list[int] = []

    def note(kept: Tensor) -> Tensor:
        sizes.append(kept.nbytes)
        return kept

    trainer.model.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept):
        trainer.step(whole(trainer.train.settled()))
    return sum(sizes)


def test_checkpointing_keeps_a_fraction(toy: Toy) -> None:
    plain, checkpointed = (kept_bytes(make_trainer(toy, each)) for each in (ExecutionOptions(), CHECKPOINTING))
    assert checkpointed < plain / 4


@pytest.mark.slow
@pytest.mark.parametrize("execution", [COMPILE, dataclasses.replace(CHECKPOINTING, compile=True)])
def test_compiled_blocks_give_the_same_run_to_rounding(
    toy: Toy, execution: ExecutionOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, compiled = (make_trainer(toy, each) for each in (ExecutionOptions(), execution))
    assert "the blocks are compiled: the first steps of the first epoch take a minute" in capsys.readouterr().out
    expected = tuned(plain)
    for name, value in tuned(compiled).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_validation_computes_blocks_as_they_are(toy: Toy) -> None:
    plain, compiled = (make_trainer(toy, each) for each in (ExecutionOptions(), COMPILE))
    block = compiled.model.get_submodule("blocks.0").forward
    assert isinstance(block, BlockForward)
    vars(block)["trained"] = None
    assert compiled.validate() == plain.validate()


@pytest.mark.slow
def test_a_machine_without_a_compiler_is_one_line(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "/nowhere/g++"))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    torch.compiler.reset()
    with pytest.raises(TrainingError, match=r"^--compile: .* \(.*compiler.*\): leave it out, also with --resume$"):
        tuned(make_trainer(toy, COMPILE))


def test_what_the_backend_raised_is_in_the_line() -> None:
    text = r"^--compile: .* \(backend='inductor' raised: ImportError: nothing\): leave it out"
    with pytest.raises(TrainingError, match=text), compiling(COMPILE):
        raise TorchDynamoException("backend='inductor' raised:\nImportError: nothing\n\nSet TORCHDYNAMO_VERBOSE=1")


def test_what_the_compiler_says_becomes_one_line() -> None:
    with (
        pytest.raises(TrainingError, match=r"^--compile: .* \(no g\+\+ here\): leave it out, also with --resume$"),
        compiling(COMPILE),
    ):
        raise TorchDynamoException("no g++ here\nSet TORCHDYNAMO_VERBOSE=1")
    with pytest.raises(TorchDynamoException), compiling(ExecutionOptions()):
        raise TorchDynamoException("not ours")


@pytest.mark.parametrize(
    ("batch_size", "execution", "text"),
    [
        (8, {}, "--resume --accumulate 2 computes the same batch in 2 parts, and --resume --checkpointing keeps fewer"),
        (8, {"accumulate": 2, "checkpointing": True}, "--resume --accumulate 4 computes the same batch in 4 parts"),
        (2, {"accumulate": 2}, "--resume --checkpointing keeps fewer activations, in more time"),
        (2, {"accumulate": 2, "checkpointing": True}, "begin again with a --batch-size below 2"),
        (1, {"checkpointing": True}, "choose a smaller backbone, or a smaller --image-size"),
    ],
)
def test_what_saves_memory_and_the_result_comes_first(batch_size: int, execution: dict[str, Any], text: str) -> None:
    assert less_memory(batch_size, ExecutionOptions(**execution)).startswith(text)
