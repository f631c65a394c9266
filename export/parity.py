"""Parity: neighbouring stages give the same logits on the canary and on some validation images.

canary -> expectation -> merged -> folded -> folded ONNX -> shared ONNX

Files in other precisions are compared with the fp32 graph of their lane. Every link has its own tolerance. Accuracy is
measured on all validation images of the run.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from export.targets import ExportTarget
from mosa_deploy.bundles.answers import Decisions, decide, expected
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.calibration import Samples
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.errors import ParityError
from mosa_deploy.runtimes.names import GRAPH_ARITHMETIC, Arithmetic, GraphRunnerName
from mosa_deploy.runtimes.runner import open_runner

BATCH = 32
"""Number of images at a time."""

Part = TypeVar("Part")


@dataclass(frozen=True)
class Tolerance:
    """How far two stages may differ, and why that far."""

    max_error: float
    """The largest error, relative to the largest absolute value of the first stage."""
    cosine: float | None
    """The least cosine of any row; None if it is not looked at."""
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
"""Tolerances of an fp32 graph with each runner."""

WAYS_OUT = {
    True: "Check that the bundle was tuned on these very weights",
    False: "Leave this precision out of --precision, or this runner out of --runners",
}
"""What to do about a broken link, by whether both stages are in fp32."""


@dataclass(frozen=True)
class Link:
    """Two stages compared; errors are relative to the largest absolute value of the first."""

    first: str
    second: str
    max_error: float
    mean_error: float
    cosine: float
    top1_agreement: float
    """The share of images for which both answer the same class, or the same labels."""
    tolerance: Tolerance = FP32

    @property
    def holds(self) -> bool:
        """Whether the stages are within the tolerance; NaN never is."""
        near = self.tolerance.cosine is None or self.cosine >= self.tolerance.cosine
        return near and self.max_error <= self.tolerance.max_error

    @property
    def fault(self) -> str:
        """By how much a link that does not hold misses its tolerance."""
        if self.max_error <= self.tolerance.max_error:
            return f"a cosine of {self.cosine:.4f}, below {self.tolerance.cosine}"
        return f"{self.max_error:.1e} of the largest output, above {self.tolerance.max_error:.0e}"


Decide = Callable[[Array], Decisions]
"""Which classes an output (n, K) answers, (n, K)."""


def likeliest(output: Array) -> Decisions:
    """One class for each image."""
    return decide(output, None)


def compare_outputs(
    first: str, a: Array, second: str, b: Array, tolerance: Tolerance = FP32, decided: Decide = likeliest
) -> Link:
    """Compare two outputs (n, K). Outputs of different shapes have nothing in common."""
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
        top1_agreement=float((decided(a) == decided(b)).all(axis=1).mean()),
        tolerance=tolerance,
    )


class Chain:
    """The stages so far, each compared with the one before."""

    def __init__(self, bundle: Bundle, samples: Samples | None = None, compared: int = 0) -> None:
        """Stages are compared on the canary and on up to `compared` images of `samples`."""
        self.bundle, self.preprocess = bundle, bundle.record.preprocess
        pixels = bundle.canary.pixels(self.preprocess)
        self.canaries = len(pixels)
        self.samples = Samples.unlabelled(pixels[:0]) if samples is None else samples
        self.inputs = self.preprocess.normalise(np.concatenate([pixels, self.samples.compared(compared)]))
        self.links: list[Link] = []
        self.stage = "canary"
        self.output = bundle.canary.probabilities
        self.outputs: dict[str, Array] = {}

    def add(self, stage: str, logits: Array) -> None:
        """Compare a stage's logits with the stage before; the first is compared with the canary's probabilities."""
        record = self.bundle.record
        if not self.outputs:
            given, of_scores = record.scores(logits[: self.canaries]), partial(decide, thresholds=record.thresholds)
            self.links.append(compare_outputs(self.stage, self.output, stage, given, decided=of_scores))
        else:
            self.links.append(compare_outputs(self.stage, self.output, stage, logits, decided=record.decide))
        self.stage, self.output = stage, logits
        self.outputs[stage] = logits

    def compare(self, first: str, second: str, logits: Array, tolerance: Tolerance) -> Link:
        """A file in another precision, or by another runner, beside an earlier stage; not yet a link of the chain."""
        return compare_outputs(first, self.outputs[first], second, logits, tolerance, self.bundle.record.decide)

    def branch(self, link: Link) -> Link:
        """Add a comparison to the chain.

        Raises:
            ParityError: the two disagree.
        """
        self.links.append(link)
        self.require()
        return link

    @torch.inference_mode()
    def add_model(self, stage: str, model: nn.Module) -> None:
        """A torch model as the next stage."""
        self.add(stage, self.answers(stage, lambda images: model(torch.from_numpy(images)).numpy()))

    def add_target(self, target: ExportTarget) -> None:
        """A graph that is exported, run on the CPU, as the next stage."""
        self.add(target.stage, self.answers(target.stage, target.answer_by(open_runner(target.path))))

    def answers(self, stage: str, answer: Callable[[Array], Array], batch: int = BATCH) -> Array:
        """The logits of the images on which stages are compared."""
        parts = [self.inputs[start : start + batch] for start in range(0, len(self.inputs), batch)]
        return np.concatenate([answer(images) for images in progress(parts, f"parity: {stage}")])

    def accuracy(
        self,
        name: str,
        answer: Callable[[Array], Array],
        batch: int = BATCH,
        enough: Callable[[float], bool] = lambda _: True,
    ) -> float | None:
        """The share of the labelled images whose class, or exactly whose labels, a graph answers; None without any.

        Once it can no longer be `enough`, the largest share that is left is returned.
        """
        labels, pixels = self.samples.labels, self.samples.validation
        if not len(labels):
            return None
        parts, wrong = [slice(start, start + batch) for start in range(0, len(pixels), batch)], 0
        for part in progress(parts, f"accuracy: {name}"):
            answered = self.bundle.record.decide(answer(self.preprocess.normalise(pixels[part])))
            right = (answered == expected(labels[part], answered.shape[1])).all(axis=1)
            wrong += int((~right).sum())
            if not enough((len(labels) - wrong) / len(labels)):
                break
        return (len(labels) - wrong) / len(labels)

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
        others = len(self.inputs) - self.canaries
        return {
            "canary_images": self.canaries,
            "validation_images": others if len(self.samples.labels) else 0,
            "other_images": 0 if len(self.samples.labels) else others,
            "accuracy_images": len(self.samples.labels),
            "links": [asdict(link) for link in self.links],
        }


def progress(parts: list[Part], description: str) -> Iterable[Part]:
    """The parts, with a bar on a terminal that tells the time left."""
    bar: Iterable[Part] = tqdm(parts, desc=description, unit=" batches", leave=False, disable=None)
    return bar


def table(links: Sequence[Link]) -> str:
    """The chain in words, one line per link."""
    return "\n".join(
        f"parity {link.first:>11} = {link.second:<11} max error {link.max_error:.1e}, cosine {link.cosine:.9f},"
        f" top-1 agreement {link.top1_agreement:.3f}"
        for link in links
    )
