"""The promotion gate: a new version replaces the served one if it is not worse on labelled images, by a stated margin.

Both versions answer the same images, on the path that answers clients. So the comparison is paired: only the images
that the two answer differently count. See `mosa_deploy.bundles.gate` for how many images tell a margin.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.gate import LOSSES, LabelledImage, check_gate, images_needed
from mosa_deploy.bundles.record import Record
from mosa_deploy.client.schema import Gate
from mosa_deploy.errors import BundleError, MosaError, StoreAccessError
from serving.backend import PutOptions
from serving.errors import RequestError
from serving.loaded_task import LoadedTask, answers
from serving.registry import DAMAGED, Entry, Registry
from serving.settings import Settings

log = logging.getLogger("mosa_deploy.serving")


@dataclass(frozen=True)
class Comparison:
    """The images of a gate, and what the served version makes of them."""

    images: tuple[LabelledImage, ...]
    before: tuple[bool, ...] | None
    """Which images it answers rightly; None if there is no version to compare with."""
    margin: float
    force: bool


class PromotionGate:
    """Compares new versions with those that a registry serves."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self.registry, self.settings = registry, settings

    def compare(self, entry: Entry, archive: Archive, record: Record, options: PutOptions) -> Comparison | None:
        """Ask the served version about the labelled images that the upload brings, or that are kept.

        None if there are none, or if the served version itself is uploaded again, in another lane perhaps.

        Raises:
            RequestError: 409 if the kept ones have other classes, 422 if there are too few or one cannot be used.
        """
        again = archive.key == entry.decision.current and not archive.gate
        images = () if again else self._images(entry.name, archive, record, options.force)
        if not images:
            return None
        margin = self.settings.promotion_margin if options.margin is None else options.margin
        last = entry.decision.find(entry.decision.current)
        # An image of a class that the served version never had says nothing about it.
        known = tuple(image for image in images if last is None or {*image.labels} <= {*last.classes})
        compared = known or images
        if not options.force:
            which = "" if archive.gate else " that the service keeps from an earlier upload"
            which += " of classes that both versions have" if known != images else ""
            require_images(len(compared), margin, which)
        return Comparison(compared, self._before(entry, compared) if known else None, margin, options.force)

    def judge(self, comparison: Comparison, loaded: LoadedTask) -> Gate:
        """Ask the new version about the same images, and compare.

        Raises:
            RequestError: 409 if it is worse by more than the margin.
        """
        name, count = loaded.version.record.task, len(comparison.images)
        before, right = comparison.before, self._answers(loaded, comparison.images)
        accuracy, margin = sum(right) / count, comparison.margin
        earlier = None if before is None else sum(before) / count
        gate = Gate(images=count, accuracy=accuracy, accuracy_before=earlier, margin=margin)
        lost = sum(old and not new for old, new in zip(before or right, right, strict=True))
        won = sum(new and not old for old, new in zip(before or right, right, strict=True))
        found = f"accuracy {accuracy:.4f} on {count} labelled images"
        if before is not None:
            found += f", {earlier:.4f} by the served version ({lost} lost, {won} won), margin {margin:g}"
        if lost - won > margin * count + 1e-9:
            log.warning(
                "%s: %s: %s", name, found, "served by force" if comparison.force else "refused", extra=about(name)
            )
            if not comparison.force:
                raise RequestError(409, f"'{name}' is worse: {found}; send ?force=true to serve it all the same")
        else:
            log.info("%s: %s: served", name, found, extra=about(name))
        return gate

    def _images(self, name: str, archive: Archive, record: Record, force: bool) -> tuple[LabelledImage, ...]:
        """The images that the upload brings, else those that are kept."""
        store = self.registry.store
        try:
            return check_gate(archive.gate or store.gate(name), record)
        except BundleError as fault:
            if archive.gate:
                raise RequestError(422, str(fault)) from None
            if not force:
                reason = f"the labelled images that are kept do not fit the new version ({fault})"
                raise RequestError(409, f"{reason}: send new ones with it, or ?force=true to drop them") from None
            log.warning("the labelled images are dropped by force: %s", fault, extra=about(name))
            store.forget_gate(name)
            return ()

    def _before(self, entry: Entry, images: Sequence[LabelledImage]) -> tuple[bool, ...] | None:
        """Which images the served version answers rightly; None if none is served, or it cannot be loaded."""
        if entry.decision.current in (None, DAMAGED):
            return None
        try:
            held = self.registry.acquire(entry.name)
        except StoreAccessError:
            raise
        except MosaError as fault:
            log.warning("no version to compare with: %s", fault, extra=about(entry.name))
            return None
        try:
            return self._answers(held, images)
        finally:
            self.registry.release(held)

    def _answers(self, loaded: LoadedTask, images: Sequence[LabelledImage]) -> tuple[bool, ...]:
        return answers(loaded, images, self.registry.cache.loader.batcher, self.settings.max_pixels)


def about(task: str) -> dict[str, str]:
    """What tells the log which task a line is about."""
    return {"task": task}


def require_images(count: int, margin: float, which: str = "") -> None:
    """Raises RequestError 422 if so few images cannot tell the margin."""
    needed = images_needed(margin)
    if count >= needed:
        return
    told = f", or ?margin={LOSSES / count:.3g}" if count > LOSSES else ""
    raise RequestError(
        422,
        f"{count} labelled images{which} cannot tell a difference of {margin:g}: that takes {needed}, so that a version"
        f" which is worse by it loses at least {LOSSES} (sign test, 5 %); send as many{told}, or ?force=true",
    )
