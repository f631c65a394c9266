"""Agreement: a task is answered in int8 only if its own validation images say that this costs it little.

A canary of eight images proves little at int8's tolerance. So the validation images that travel with a version are
answered in int8 and in fp32, and the accuracies are compared. What was counted is kept in the store by the version and
the digest of the file, so a later start asks no images.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Literal

from pydantic import BaseModel, ConfigDict

from mosa_deploy.bundles.canary import CANARY_PIXELS
from mosa_deploy.bundles.gate import LabelledImage
from mosa_deploy.bundles.store_layout import agreement_file
from mosa_deploy.errors import MosaError, ParityError
from serving.batching import Batcher
from serving.candidates import Candidate, Choices
from serving.kept import recall, remember
from serving.loaded_task import LoadedTask, answers
from serving.store import TaskStore

IMAGES = 256
"""The most images that are asked."""

FP32 = "fp32"


class Counts(BaseModel):
    """`agreements/<key>.json`: how many validation images of a version each graph answers rightly."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # What cannot be read is counted again, so no version is migrated.
    format_version: Literal[1] = 1
    images: int
    right: dict[str, int]
    """By the file's sha256 and its runner, or `fp32`."""

    def accuracy(self, key: str) -> float:
        """The share of the images that a graph answers rightly."""
        return self.right[key] / self.images


class Agreement:
    """Compares a version's answers in int8 with those in fp32."""

    def __init__(self, store: TaskStore, batcher: Batcher, max_loss: float) -> None:
        """`max_loss` is in points of accuracy."""
        self.store, self.batcher, self.max_loss = store, batcher, max_loss

    def require(
        self,
        candidate: Candidate,
        loaded: LoadedTask,
        choices: Choices,
        validation: Callable[[], Sequence[LabelledImage]],
        in_fp32: Callable[[], AbstractContextManager[LoadedTask]],
    ) -> None:
        """Check that a version, which is loaded by a candidate, loses no more accuracy than it may.

        `validation` reads the images that travel with it, and `in_fp32` loads it in fp32 for a while.

        Raises:
            ParityError: it loses more, or there is nothing to tell.
        """
        key = f"{candidate.digest} {candidate.runner}"
        counts = recall(self.store.files, agreement_file(loaded.version.key), Counts)
        if counts is None or not {key, FP32} <= counts.right.keys():
            counts = self._count(key, loaded, counts, validation, in_fp32)
        if counts:
            where, accuracies = f"its {counts.images} validation images", (counts.accuracy(FP32), counts.accuracy(key))
        else:
            where, accuracies = "the validation images of its export", self._recorded(candidate, choices)
        loss = 100 * (accuracies[0] - accuracies[1])
        if loss > self.max_loss + 1e-9:
            raise ParityError(
                f"an accuracy of {accuracies[1]:.4f} in {candidate.precision} on {where}, {accuracies[0]:.4f} in fp32:"
                f" {loss:.2f} points less, and MOSA_MAX_ACCURACY_LOSS={self.max_loss:g}"
            )

    def _count(
        self,
        key: str,
        loaded: LoadedTask,
        known: Counts | None,
        validation: Callable[[], Sequence[LabelledImage]],
        in_fp32: Callable[[], AbstractContextManager[LoadedTask]],
    ) -> Counts | None:
        """Ask the validation images, and keep what was counted; None if the version carries none."""
        version, right = loaded.version, dict(known.right) if known else {}
        try:
            images = validation()[:IMAGES]
        except MosaError as fault:
            raise ParityError(f"its validation images cannot be read: {fault}") from None
        if not images:
            return None
        right[key] = self._right(loaded, images)
        if FP32 not in right:
            with in_fp32() as reference:
                right[FP32] = self._right(reference, images)
        counts = Counts(images=len(images), right=right)
        remember(self.store.files, agreement_file(version.key), counts)
        return counts

    def _right(self, loaded: LoadedTask, images: Sequence[LabelledImage]) -> int:
        unresized = loaded.version.record.preprocess.unresized
        return sum(answers(loaded, images, self.batcher, CANARY_PIXELS, unresized))

    def _recorded(self, candidate: Candidate, choices: Choices) -> tuple[float, float]:
        """The accuracies in fp32 and in int8 that the export recorded.

        Raises:
            ParityError: it recorded none of these files.
        """
        found = choices.proved.get(candidate.file.name) if candidate.file else None
        fp32 = choices.proved.get(choices.graph)
        if found and found.sha256 != candidate.digest:
            found = None
        if found and fp32 and found.accuracy is not None and fp32.accuracy is not None:
            return fp32.accuracy, found.accuracy
        if found and found.fault:
            raise ParityError(f"its export found that {found.fault}")
        raise ParityError(
            "nothing says what int8 costs it: its bundle carries no validation images, and no export recorded the"
            " accuracy of this file; tune or export it again"
        )
