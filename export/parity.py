"""Parity: neighbouring stages of the way give the same logits on the canary and on validation images.

canary -> expectation -> merged -> folded -> folded ONNX -> shared ONNX

Files of other precisions branch off the fp32 graph of their lane. Every link carries its own tolerance.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from mosa_deploy.backbones.foldable import Transformer
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.calibration import Labels
from mosa_deploy.bundles.preprocess import Array, Pixels, probabilities
from mosa_deploy.errors import ParityError
from mosa_deploy.graphs.adapter_weights import adapter_weights, layout_of
from mosa_deploy.graphs.bank import Bank
from mosa_deploy.runtimes.names import GRAPH_ARITHMETIC, Arithmetic, GraphRunnerName
from mosa_deploy.runtimes.onnx_runtime import OnnxRunner
from mosa_deploy.runtimes.runner import open_runner
from mosa_deploy.runtimes.shared import SharedRunner


@dataclass(frozen=True)
class Tolerance:
    """How far two stages may differ, and why that far."""

    max_error: float
    """Of the largest absolute value of the first."""
    cosine: float | None
    """At least, in the worst row, where it is asked for."""
    reason: str


FP32 = Tolerance(
    1e-4,
    None,
    "fp32 sums in another order differ by 1e-6 to 1e-5 of the largest logit; a wrong fold differs by far more",
)

TOLERANCES: dict[Arithmetic, Tolerance] = {
    "fp32": FP32,
    "tf32": Tolerance(1e-2, 0.9999, "CUDA multiplies in TF32, which has ten bits: 1e-3 of each product"),
    "fp16": Tolerance(
        2e-2,
        0.999,
        "fp16 rounds to 5e-4 and sums many such errors, measured 3e-4; ViT engines were reported at a cosine of 0.14",
    ),
    "bf16": Tolerance(5e-2, 0.999, "bf16 has eight bits: 4e-3 of each product, measured 1e-2 of the logits"),
    "int8": Tolerance(
        0.3,
        0.95,
        "eight bits round every activation to 4e-3 of its range, measured 3e-2 to 1e-1 and a cosine of 0.98 to 0.999;"
        " what must not be quantised ends below 0.8. Whether the answers suffer is for the test set to say",
    ),
}
"""By what the second stage computes in."""

BY_RUNNER: dict[GraphRunnerName, Tolerance] = {name: TOLERANCES[own] for name, own in GRAPH_ARITHMETIC.items()}
"""Of an fp32 graph by each runner."""

WAYS_OUT = {
    True: "Check that the bundle was tuned on these very weights",
    False: "Leave this precision out of --precision, or this runner out of --runners",
}
"""By whether both stages are in fp32."""


@dataclass(frozen=True)
class Link:
    """Two neighbouring stages compared; errors are relative to the largest absolute value of the first."""

    first: str
    second: str
    max_error: float
    mean_error: float
    cosine: float
    top1_agreement: float
    tolerance: Tolerance = FP32

    @property
    def holds(self) -> bool:
        """Within the tolerance; NaN is not."""
        near = self.tolerance.cosine is None or self.cosine >= self.tolerance.cosine
        return near and self.max_error <= self.tolerance.max_error

    @property
    def fault(self) -> str:
        """How far apart the stages are, where they are too far."""
        if self.max_error <= self.tolerance.max_error:
            return f"a cosine of {self.cosine:.4f}, below {self.tolerance.cosine}"
        return f"{self.max_error:.1e} of the largest output, above {self.tolerance.max_error:.0e}"


def compare(first: str, a: Array, second: str, b: Array, tolerance: Tolerance = FP32) -> Link:
    """Compare two outputs (n, K); of different shapes, they have nothing in common."""
    if a.shape != b.shape:
        return Link(first, second, math.inf, math.inf, cosine=0.0, top1_agreement=0.0, tolerance=tolerance)
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
        tolerance=tolerance,
    )


class Chain:
    """The stages so far, each compared with the one before."""

    def __init__(self, bundle: Bundle, others: Pixels | None = None, labels: Labels | None = None) -> None:
        """`others` (n, H, W, 3) are images on which the stages after the canary are compared too."""
        self.bundle, self.preprocess = bundle, bundle.record.preprocess
        self.labels: Labels = np.empty(0, dtype=np.int64) if labels is None else labels
        pixels = bundle.canary.pixels(self.preprocess)
        self.canaries = len(pixels)
        self.inputs = self.preprocess.normalise(pixels if others is None else np.concatenate([pixels, others]))
        self.links: list[Link] = []
        self.stage = "canary"
        self.output = bundle.canary.probabilities
        self.outputs: dict[str, Array] = {}

    def add(self, stage: str, logits: Array) -> None:
        """Compare a stage's logits with the stage before; the canary itself is compared in probabilities."""
        if self.stage == "canary":
            given = probabilities(logits[: self.canaries], self.bundle.record.temperature)
            self.links.append(compare(self.stage, self.output, stage, given))
        else:
            self.links.append(compare(self.stage, self.output, stage, logits))
        self.stage, self.output = stage, logits
        self.outputs[stage] = logits

    def branch(self, first: str, second: str, logits: Array, tolerance: Tolerance) -> Link:
        """Compare a file of another precision with a stage that is there already.

        Raises:
            ParityError: they disagree.
        """
        link = compare(first, self.outputs[first], second, logits, tolerance)
        self.links.append(link)
        self.require()
        return link

    @torch.inference_mode()
    def add_model(self, stage: str, model: Transformer) -> None:
        """A torch model as the next stage."""
        self.add(stage, model(torch.from_numpy(self.inputs)).numpy())

    def add_graph(self, stage: str, path: Path) -> None:
        """An ONNX file on the CPU as the next stage."""
        self.add(stage, OnnxRunner(path).run(self.inputs))

    def add_shared(self, stage: str, path: Path) -> None:
        """The shared graph with this task in one of its slots, and the task's head, as the next stage."""
        bank = Bank(layout_of(self.bundle.record))
        slot = bank.write(adapter_weights(self.bundle))
        features = SharedRunner(open_runner(path), bank).run(self.inputs, np.full(len(self.inputs), slot))
        head, bias = self.bundle.head
        self.add(stage, features @ head.T + bias)

    def accuracy(self, logits: Array) -> float | None:
        """The share of the labelled images that a stage's logits put into their class; None if there are none."""
        if not len(self.labels):
            return None
        return float((logits[self.canaries :].argmax(1) == self.labels).mean())

    def require(self) -> None:
        """Raises ParityError, naming the first pair of stages that disagree."""
        for link in self.links:
            if not link.holds:
                raise ParityError(
                    f"'{self.bundle.record.task}': {link.first} and {link.second} differ by {link.fault}; the store"
                    f" keeps what it had. {WAYS_OUT[link.tolerance == FP32]}"
                )

    def report(self) -> dict[str, object]:
        """What `parity.json` says of the chain."""
        return {
            "canary_images": self.canaries,
            "validation_images": len(self.labels),
            "other_images": len(self.inputs) - self.canaries - len(self.labels),
            "links": [asdict(link) for link in self.links],
        }


def table(links: Sequence[Link]) -> str:
    """The chain in words, a line a link."""
    return "\n".join(
        f"parity {link.first:>11} = {link.second:<11} max error {link.max_error:.1e}, cosine {link.cosine:.9f},"
        f" top-1 agreement {link.top1_agreement:.3f}"
        for link in links
    )
