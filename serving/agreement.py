"""Agreement: a task is answered in int8 only if its validation images say that this costs it little.

A canary of eight images proves little at int8's tolerance. So the accuracies in int8 and in fp32 are compared: those
that the export recorded of this very file, else those on the validation images that travel with a version. What was
counted on them is kept in the store by the version and the digest of the file, so a later start asks no images.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
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
from serving.store import TaskStore, Version

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


@dataclass(frozen=True)
class Evidence:
    """What a task's accuracies in fp32 and in a lower precision are, and on which images."""

    where: str
    fp32: float
    lower: float


class Agreement:
    """Compares a version's answers in int8 with those in fp32."""

    def __init__(self, store: TaskStore, batcher: Batcher, max_loss: float) -> None:
        """`max_loss` is in points of accuracy."""
        self.store, self.batcher, self.max_loss = store, batcher, max_loss

    def evidence(self, candidate: Candidate, version: Version, choices: Choices) -> Evidence | None:
        """What is known of a version and a file without asking any image; None if nothing is.

        Raises:
            ParityError: its export found that the file loses too much.
        """
        found = choices.proved.get(candidate.file.name) if candidate.file else None
        fp32 = choices.proved.get(choices.graph)
        if found and found.sha256 == candidate.digest:
            if found.fault:
                raise ParityError(f"its export found that {found.fault}")
            if fp32 and fp32.accuracy is not None and found.accuracy is not None:
                return Evidence("the validation images of its export", fp32.accuracy, found.accuracy)
        return self._counted(candidate, recall(self.store.files, agreement_file(version.key), Counts))

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
        known = self.evidence(candidate, loaded.version, choices)
        found = known or self._count(candidate, loaded, validation, in_fp32)
        loss = 100 * (found.fp32 - found.lower)
        if loss > self.max_loss + 1e-9:
            raise ParityError(
                f"an accuracy of {found.lower:.4f} in {candidate.precision} on {found.where}, {found.fp32:.4f} in fp32:"
                f" {loss:.2f} points less, and MOSA_MAX_ACCURACY_LOSS={self.max_loss:g}"
            )

    @staticmethod
    def _counted(candidate: Candidate, counts: Counts | None) -> Evidence | None:
        """What was counted on a version's images; None if the candidate or fp32 is not among it."""
        if counts is None or not {_key(candidate), FP32} <= counts.right.keys():
            return None
        where = f"its {counts.images} validation images"
        return Evidence(where, counts.accuracy(FP32), counts.accuracy(_key(candidate)))

    def _count(
        self,
        candidate: Candidate,
        loaded: LoadedTask,
        validation: Callable[[], Sequence[LabelledImage]],
        in_fp32: Callable[[], AbstractContextManager[LoadedTask]],
    ) -> Evidence:
        """Ask the validation images, and keep what was counted."""
        version = loaded.version
        known = recall(self.store.files, agreement_file(version.key), Counts)
        right = dict(known.right) if known else {}
        try:
            images = validation()[:IMAGES]
        except MosaError as fault:
            raise ParityError(f"its validation images cannot be read: {fault}") from None
        if not images:
            raise ParityError(
                "nothing says what int8 costs it: its bundle carries no validation images, and no export recorded the"
                " accuracy of this file; tune or export it again"
            )
        right[_key(candidate)] = self._right(loaded, images)
        if FP32 not in right:
            with in_fp32() as reference:
                right[FP32] = self._right(reference, images)
        counts = Counts(images=len(images), right=right)
        remember(self.store.files, agreement_file(version.key), counts)
        found = self._counted(candidate, counts)
        assert found is not None
        return found

    def _right(self, loaded: LoadedTask, images: Sequence[LabelledImage]) -> int:
        unresized = loaded.version.record.preprocess.unresized
        return sum(answers(loaded, images, self.batcher, CANARY_PIXELS, unresized))


def _key(candidate: Candidate) -> str:
    return f"{candidate.digest} {candidate.runner}"
