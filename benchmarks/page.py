"""The page `/ui` in Chromium: its pictures in the docs, its bytes and its first paint. `python -m benchmarks.page`.

Tunes three small tasks by the linear probe, serves them by `bentoml serve`, and asks all of them about a sprite, which
one of them has never seen the like of. It takes a few minutes on one core. The tasks stay in `build/page`, and are not
tuned again while they are there.
"""

import io
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, Request, expect

from export.export import export
from export.options import ExportConfig
from mosa_deploy.errors import command
from mosa_deploy.utils.files import write_text
from mosa_deploy.utils.markdown import table
from mosa_deploy.utils.versions import provenance
from tests.support.browser import browsing
from tests.support.service import KEY, serve
from training.config import TuneConfig
from training.tasks.sprites import read
from training.tune import tune

FOLDER = Path("build/page")
TASKS = ("digits", "sprites-labels", "sprites-location")
IMAGE = 1003
"""A sprite of the test set."""

SIZE = (1100, 900)
COLOURS = 128
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
MOST_BYTES, MOST_SECONDS = 300_000, 1.0

FIRST_PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


@dataclass(frozen=True)
class Config:
    """Picture the page, and measure it."""

    visits: int = 10
    """How often it is opened, each time by a new visitor."""
    pictures: Path = Path("docs/assets")
    """The folder for `ui-light.png` and `ui-dark.png`."""
    out: Path = Path("benchmarks/results/page.md")
    """The table to write."""


@dataclass(frozen=True)
class Visit:
    """What one visitor had to wait for and to load."""

    paint: float
    """Seconds until the first text is seen."""
    listed: float
    """Seconds until the tasks are listed, as the visitor's script sees it."""
    requests: int
    loaded: int
    """Bytes of the page and its files, without the answers of the API."""


def make_store() -> Path:
    """A store with the tasks."""
    store = FOLDER / "store"
    for task in TASKS:
        run = FOLDER / "runs" / task
        if not (store / "tasks" / task).exists():
            tune(TuneConfig(task=task, method="linear", device="cpu", out=run))
            export(ExportConfig(bundle=run, out=store))
    return store.resolve()


def visit(browser: Browser, address: str) -> Visit:
    """Open the page as a new visitor."""
    context = browser.new_context()
    page = context.new_page()
    requests = list[Request]()
    page.on("requestfinished", lambda request: requests.append(request))
    page.goto(f"{address}/ui")
    expect(page.locator("#tasks")).to_be_visible()
    page.wait_for_function(FIRST_PAINT)
    paint = float(page.evaluate(FIRST_PAINT))
    listed = float(page.evaluate("performance.getEntriesByName(new URL('v1/tasks', location).href)[0].responseEnd"))
    sizes = [each.sizes()["responseBodySize"] for each in requests if not each.url.endswith("/v1/tasks")]
    context.close()
    return Visit(paint / 1000, listed / 1000, len(requests), sum(sizes))


def show(page: Page, address: str) -> None:
    """Make the page show what it can: answers of each kind, and what an admin sees."""
    page.goto(f"{address}/ui")
    page.locator("#key-panel summary").click()
    page.get_by_label("API key or admin key").fill(KEY)
    page.get_by_role("button", name="Use this key").click()
    expect(page.locator("#upload")).to_be_visible()
    page.locator("#key-panel summary").click()
    image: FilePayload = {"name": "sprite.png", "mimeType": "image/png", "buffer": read(IMAGE)}
    page.get_by_label("Image", exact=True).set_input_files(image)
    for task in TASKS:
        page.get_by_role("checkbox", name=task, exact=True).check()
    page.get_by_label("Classes to show").fill("3")
    page.get_by_label("Name no class if unknown is above").fill("0.99")
    page.get_by_role("button", name="Classify").click()
    expect(page.get_by_role("article")).to_have_count(len(TASKS))


def picture(browser: Browser, address: str, folder: Path) -> Iterator[Path]:
    """Write the page as a picture in each of the two schemes."""
    width, height = SIZE
    for scheme in SCHEMES:
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
        page = context.new_page()
        show(page, address)
        path = folder / f"ui-{scheme}.png"
        taken = Image.open(io.BytesIO(page.screenshot(full_page=True)))
        # The page has few colours, and a palette of them a third of the bytes.
        taken.convert("RGB").quantize(COLOURS).save(path, optimize=True)
        context.close()
        yield path


def report(visits: list[Visit], version: str) -> str:
    """The table of what was measured."""
    paint, listed = ([getattr(each, name) for each in visits] for name in ("paint", "listed"))
    rows = [
        ("first paint, s, median", f"{statistics.median(paint):.3f}", f"< {MOST_SECONDS:g}"),
        ("first paint, s, longest", f"{max(paint):.3f}", f"< {MOST_SECONDS:g}"),
        ("tasks are there, s, median", f"{statistics.median(listed):.3f}", ""),
        ("bytes of the page and its files", f"{visits[0].loaded:,}", f"<= {MOST_BYTES:,}"),
        ("requests, that for the tasks among them", str(visits[0].requests), ""),
    ]
    said = (
        f"{len(visits)} visits of Chromium {version} to `bentoml serve` on the same machine, nothing kept between them:"
    )
    return "\n\n".join(["# The page", provenance("benchmarks.page"), said, table(("what", "measured", "aim"), rows)])


@command
def main() -> None:
    """Picture, measure, print and write."""
    config = tyro.cli(Config, prog="python -m benchmarks.page")
    with tempfile.TemporaryDirectory() as scratch, browsing() as browser:
        folder = Path(scratch)
        with serve(make_store(), folder, admin_keys=KEY) as server:
            server.wait_until("ready")
            visits = [visit(browser, server.address) for _ in range(config.visits)]
            for path in picture(browser, server.address, config.pictures):
                print(f"{path}: {path.stat().st_size:,} bytes")
        text = report(visits, browser.version)
    write_text(config.out, f"{text}\n")
    print(text)


if __name__ == "__main__":
    main()
