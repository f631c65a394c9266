"""What a visitor does on our page, and the tasks that it is shown with."""

import shutil
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import FilePayload, Locator, Page, expect

from mosa_deploy.bundles.answers import PerLabel
from mosa_deploy.bundles.archive import Archive
from mosa_deploy.bundles.record import RECORD
from mosa_deploy.bundles.store_layout import StoreLayout
from tests.support.app import maker_on
from tests.support.statistics import with_statistics
from tests.support.tasks import CLASSES, TaskMaker, packed

MARKUP = "<img src=x onerror=alert(1)>"
"""A class that `told` names."""


def make_store(maker: TaskMaker, root: Path) -> None:
    """The maker's store, and in it four tasks more.

    `tags` has several labels per image, `never` answers none of them, `told` tells unknown images and has an accuracy,
    and `torn` cannot be served.
    """
    shutil.copytree(maker.root, root)
    for archive in (tags(maker, "tags", 0.5), tags(maker, "never", 1.0), told_of(maker), maker.make("torn", 5)):
        maker_on(root, maker).store(archive)
    (StoreLayout(root).task("torn") / RECORD).write_text("{")


def tags(maker: TaskMaker, name: str, threshold: float) -> Archive:
    """A task with several labels per image, all with one threshold; labels have the scores 0.98 and 0.02."""
    each = PerLabel(scales=(1.0,) * CLASSES, offsets=(-4.0,) * CLASSES, thresholds=(threshold,) * CLASSES)
    return maker.make(name, per_label=each)


def told_of(maker: TaskMaker) -> Archive:
    """A task that tells unknown images, knows its accuracy, and has markup for the name of a class."""
    bundle = with_statistics(maker, maker.make("told", 2)).bundle()
    classes = (*bundle.record.classes[:2], MARKUP, *bundle.record.classes[3:])
    update = {"classes": classes, "metrics": {"validation_accuracy": 0.875}}
    return packed(replace(bundle, record=bundle.record.model_copy(update=update)))


def use(page: Page, key: str) -> None:
    """Type a key."""
    expect(page.get_by_label("API key or admin key")).to_be_visible()
    page.get_by_label("API key or admin key").fill(key)
    page.get_by_role("button", name="Use this key").click()


def row(page: Page, task: str) -> Locator:
    """The row of a task in the table."""
    return page.locator("#tasks tr", has=page.get_by_role("rowheader", name=task, exact=True))


def file(content: bytes, name: str = "some.png") -> FilePayload:
    """A file as it is chosen."""
    return {"name": name, "mimeType": "application/octet-stream", "buffer": content}


def choose(page: Page, *tasks: str) -> None:
    """Choose these tasks, and no others."""
    page.get_by_role("button", name="Choose none").click()
    for task in tasks:
        page.get_by_role("checkbox", name=task, exact=True).check()


def classify(page: Page, image: bytes, *tasks: str) -> None:
    """Ask these tasks about an image."""
    page.get_by_label("Image", exact=True).set_input_files(file(image))
    choose(page, *tasks)
    page.get_by_role("button", name="Classify").click()


def card(page: Page, task: str) -> Locator:
    """What a task answered."""
    return page.get_by_role("article").filter(has=page.get_by_role("heading", name=task, exact=True))


def tab_to(page: Page, target: Locator) -> None:
    """Press the Tab key until an element has the focus."""
    for _ in range(40):
        if target.evaluate("(element) => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"the Tab key does not lead to {target}")
