"""Parity: neighbouring stages of the way give the same logits on the canary and on calibration images.

canary -> expectation -> merged -> folded -> folded ONNX -> shared ONNX
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer

from mosa_deploy.bank import Bank
from mosa_deploy.bundle import Bundle
from mosa_deploy.errors import ParityError
from mosa_deploy.preprocess import Array, Pixels, probabilities
from mosa_deploy.rows import layout, task_rows
from mosa_deploy.runners import OnnxRunner, SharedRunner

TOLERANCE = 1e-4
REASON = "fp32 sums in another order differ by 1e-6 to 1e-5 of the largest logit; a wrong fold differs by far more"


@dataclass(frozen=True)
class Link:
    """Two neighbouring stages compared; errors are relative to the largest absolute value of the first."""

    first: str
    second: str
    max_error: float
    mean_error: float
    cosine: float
    top1_agreement: float

    @property
    def holds(self) -> bool:
        """Within the tolerance; NaN is not."""
        return self.max_error <= TOLERANCE


def compare(first: str, a: Array, second: str, b: Array) -> Link:
    """Compare two outputs (n, K); of different shapes, they have nothing in common."""
    if a.shape != b.shape:
        return Link(first, second, max_error=math.inf, mean_error=math.inf, cosine=0.0, top1_agreement=0.0)
    x, y = a.astype(np.float64), b.astype(np.float64)
    error = np.abs(x - y) / np.abs(x).max()
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return Link(
        first,
        second,
        max_error=float(error.max()),
        mean_error=float(error.mean()),
        cosine=float(np.min((x * y).sum(axis=1) / norms)),
        top1_agreement=float((x.argmax(1) == y.argmax(1)).mean()),
    )


class Chain:
    """The stages so far, each compared with the one before."""

    def __init__(self, bundle: Bundle, calibration: Pixels | None = None) -> None:
        """`calibration` (n, H, W, 3) are images on which the stages after the canary are compared too."""
        self.bundle, preprocess = bundle, bundle.record.preprocess
        pixels = bundle.canary.pixels(preprocess)
        self.canaries = len(pixels)
        self.inputs = preprocess.normalise(pixels if calibration is None else np.concatenate([pixels, calibration]))
        self.links: list[Link] = []
        self.stage = "canary"
        self.output = bundle.canary.probabilities

    def add(self, stage: str, logits: Array) -> None:
        """Compare a stage's logits with the stage before; the canary itself is compared in probabilities."""
        if self.stage == "canary":
            given = probabilities(logits[: self.canaries], self.bundle.record.temperature)
            self.links.append(compare(self.stage, self.output, stage, given))
        else:
            self.links.append(compare(self.stage, self.output, stage, logits))
        self.stage, self.output = stage, logits

    @torch.inference_mode()
    def add_model(self, stage: str, model: VisionTransformer) -> None:
        """A torch model as the next stage."""
        self.add(stage, model(torch.from_numpy(self.inputs)).numpy())

    def add_graph(self, stage: str, path: Path) -> None:
        """An ONNX file on the CPU as the next stage."""
        self.add(stage, OnnxRunner(path).run(self.inputs))

    def add_shared(self, stage: str, path: Path) -> None:
        """The shared graph with this task in one of its slots, and the task's head, as the next stage."""
        bank = Bank(layout(self.bundle.record))
        slot = bank.write(task_rows(self.bundle))
        features = SharedRunner(path, bank).run(self.inputs, np.full(len(self.inputs), slot))
        head, bias = (self.bundle.tensors[f"head.{part}"].astype(np.float32) for part in ("weight", "bias"))
        self.add(stage, features @ head.T + bias)

    def require(self) -> None:
        """Raises ParityError, naming the first pair of stages that disagree."""
        for link in self.links:
            if not link.holds:
                raise ParityError(
                    f"'{self.bundle.record.task}': {link.first} and {link.second} differ by {link.max_error:.1e} of the"
                    f" largest output, above {TOLERANCE:.0e}; the store keeps what it had. Check that the bundle was"
                    " tuned on these very weights"
                )

    def report(self) -> dict[str, object]:
        """What `parity.json` says of the chain."""
        return {
            "precision": "fp32",
            "tolerance": TOLERANCE,
            "reason": REASON,
            "canary_images": self.canaries,
            "calibration_images": len(self.inputs) - self.canaries,
            "links": [asdict(link) for link in self.links],
        }


def table(links: Sequence[Link]) -> str:
    """The chain in words, a line a link."""
    return "\n".join(
        f"parity {link.first:>11} = {link.second:<11} max error {link.max_error:.1e}, cosine {link.cosine:.9f},"
        f" top-1 agreement {link.top1_agreement:.3f}"
        for link in links
    )
