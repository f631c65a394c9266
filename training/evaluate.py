"""Read the test set.

    python -m training.evaluate --bundle runs/digits
    python -m training.evaluate --onnx artifacts/tasks/digits/folded.onnx

Everything else selects on validation; this is the one place that looks at the test set.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from mosa_deploy.backbone import Weights
from mosa_deploy.bundle import Bundle, Record, read_record
from mosa_deploy.errors import ConfigError, command
from mosa_deploy.preprocess import Array, probabilities
from mosa_deploy.restore import restore
from mosa_deploy.runners import OnnxRunner
from training.data import Images, decode_all
from training.loop import predict
from training.metrics import figures
from training.run import CONFIG
from training.tasks import find
from training.tune import choose_device

BATCH = 256


@dataclass(frozen=True)
class EvaluateConfig:
    """Accuracy, negative log likelihood and calibration error of a task on its test set."""

    bundle: Path | None = None
    """A run's folder, or a task's folder in a store."""
    onnx: Path | None = None
    """An exported graph, with its bundle beside it."""
    backbone_weights: Path | None = None
    """The file that the task was tuned on, if it was tuned on one."""
    data_dir: Path | None = None
    """The folder that holds the task's images; the run's own if left out."""
    split: str | None = None
    """As in training.tune; the run's own if left out."""
    device: str = "auto"
    """auto, cpu or cuda, for a bundle; a graph runs on the CPU."""


def evaluate(config: EvaluateConfig) -> dict[str, float]:
    """The figures on the test set.

    Raises:
        ConfigError: neither or both of a bundle and a graph are given.
    """
    if (config.bundle is None) == (config.onnx is None):
        raise ConfigError("give either --bundle FOLDER or --onnx FILE")
    folder = config.bundle or (config.onnx or Path()).parent
    record = read_record(folder)
    data_dir, split = settings(config, folder)
    task = find(record.dataset)
    test = decode_all(task.splits(data_dir, split).test, record.preprocess, "test")
    if config.onnx is not None:
        logits = run_graph(OnnxRunner(config.onnx), record, test)
    else:
        device = choose_device(config.device)
        weights = Weights("file", config.backbone_weights) if config.backbone_weights else None
        model = restore(Bundle.load(folder), weights).to(device)
        logits = predict(model, test, record.preprocess, device).numpy()
    return figures(probabilities(logits, record.temperature), test.labels)


def settings(config: EvaluateConfig, folder: Path) -> tuple[Path | None, str | None]:
    """Where the images are and how they are split: as the command line says, else as the run was tuned."""
    path = folder / CONFIG
    run = json.loads(path.read_text()) if path.is_file() else {}
    data_dir = config.data_dir or (Path(run["data_dir"]) if run.get("data_dir") else None)
    return data_dir, config.split or run.get("split")


def run_graph(runner: OnnxRunner, record: Record, images: Images) -> Array:
    """Logits (N, K) of a graph."""
    batches = images.pixels.split(BATCH)
    return np.concatenate([runner.run(record.preprocess.normalise(pixels.numpy())) for pixels in batches])


@command
def main() -> None:
    """The command line."""
    config = tyro.cli(EvaluateConfig, prog="python -m training.evaluate")
    measured = evaluate(config)
    print(
        f"test of {config.bundle or config.onnx}: "
        + ", ".join(f"{name} {value:.4f}" for name, value in measured.items())
    )


if __name__ == "__main__":
    main()
