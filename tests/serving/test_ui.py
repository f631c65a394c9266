"""What our page does in a browser, with a service that listens, below a prefix, and wants keys."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.support.app import behind_prefix, running
from tests.support.browser import CHROMIUM, NONE, NoScripts, browsing
from tests.support.tasks import TaskMaker
from tests.support.ui import MARKUP, card, choose, classify, file, make_store, row, tab_to, use

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=NONE)]  # a browser is no Python package

WAIT = 20_000.0
"""Milliseconds, on a machine that others use."""

READER = {"authorization": "Bearer reader"}

Opened = Callable[..., Page]


@pytest.fixture(scope="module")
def service(maker: TaskMaker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, str]]:
    """The service and its address; each test changes tasks of its own."""
    root = tmp_path_factory.mktemp("ui") / "store"
    make_store(maker, root)
    with (
        running(root, api_keys="reader", admin_keys="root-key", folded=("cracks",)) as client,
        behind_prefix(client) as address,
    ):
        yield client, address


@pytest.fixture(scope="module")
def address(service: tuple[TestClient, str]) -> str:
    return service[1]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=WAIT)
    with browsing() as browser:
        yield browser


@pytest.fixture
def opened(browser: Browser, address: str) -> Iterator[Opened]:
    """Opens the page as a new visitor, with a key if one is given. At the end no script may have failed."""
    faults: list[str] = []
    contexts = list[BrowserContext]()

    def open_page(key: str = "", **options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(WAIT)
        page = context.new_page()
        page.on("pageerror", lambda fault: faults.append(str(fault)))
        page.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
        page.goto(f"{address}/ui")
        if key:
            use(page, key)
            expect(page.locator("#tasks")).to_be_visible()
        return page

    yield open_page
    for context in contexts:
        context.close()
    # What the service refuses the browser notes by itself.
    assert [fault for fault in faults if "Failed to load resource" not in fault] == []


def test_tasks_are_listed_with_state_lane_precision_and_accuracy(opened: Opened) -> None:
    page = opened("reader")
    for task, cells in {
        "told": ("active", "shared", "fp32", "87.5 %", "32"),
        "cracks": ("active", "folded", "fp32", "not known", "32"),
    }.items():
        for cell in cells:
            expect(row(page, task).get_by_role("cell", name=cell, exact=True)).to_be_visible()
    expect(row(page, "torn")).to_contain_text(re.compile("refused.*is not a JSON object"))
    row(page, "told").get_by_role("button", name="More about told").click()
    expect(page.locator("#details-told")).to_contain_text("validation images of its tuning (probe)")


def test_hundreds_of_tasks_are_found_by_name(opened: Opened) -> None:
    page = opened("reader")
    page.locator("#find-task").fill("FIELDS")
    assert page.locator("#tasks tbody tr:visible th").all_inner_texts() == ["fields", "fields.b"]
    page.locator("#find-choice").fill("tag")
    assert page.locator("#choices label:visible").all_inner_texts() == ["tags"]


def test_an_image_is_chosen_asked_and_answered_by_keyboard_alone(opened: Opened, maker: TaskMaker) -> None:
    page = opened("reader")
    page.on("filechooser", lambda chooser: chooser.set_files(file(maker.images[3])))
    tab_to(page, page.get_by_label("Image", exact=True))
    page.keyboard.press("Enter")
    expect(page.get_by_role("img", name="The chosen image")).to_be_visible()
    tab_to(page, page.get_by_role("checkbox", name="birds", exact=True))
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    # All boxes are one stop.
    page.keyboard.press("Tab")
    expect(page.get_by_label("Classes to show")).to_be_focused()
    tab_to(page, page.get_by_role("button", name="Classify"))
    page.keyboard.press("Enter")
    expect(card(page, "birds").get_by_role("listitem").first).to_contain_text("class-3")
    expect(card(page, "cracks").get_by_role("listitem").first).to_contain_text("class-4")
    expect(page.get_by_role("button", name="Classify")).to_be_focused()


def test_every_stop_of_the_tab_key_is_seen(opened: Opened) -> None:
    page = opened("root-key")
    page.evaluate("document.activeElement.blur()")
    stops = list[list[str]]()
    while len(stops) < 100:
        page.keyboard.press("Tab")
        stop = page.evaluate(
            "() => { const at = document.activeElement; return at === document.body ? null"
            " : [at.id || at.outerHTML, getComputedStyle(at).outlineStyle, getComputedStyle(at).outlineWidth] }"
        )
        if stop is None or stop in stops:
            break
        stops.append(stop)
    assert len(stops) > 20
    assert {(style, width) for _, style, width in stops} == {("solid", "3px")}


def test_an_image_is_dropped(opened: Opened, maker: TaskMaker) -> None:
    page = opened("reader")
    transfer = page.evaluate_handle(
        "(bytes) => { const made = new DataTransfer(); made.items.add(new File([new Uint8Array(bytes)], 'some.png'));"
        " return made; }",
        [*maker.images[5]],
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    expect(page.get_by_role("img", name="The chosen image")).to_be_visible()
    choose(page, "birds")
    page.get_by_role("button", name="Classify").click()
    answer = card(page, "birds")
    expect(answer.get_by_role("listitem").first).to_contain_text("class-5")
    expect(answer).to_contain_text(re.compile(r"Version [0-9a-f]{12}, \d+\.\d ms"))


def test_each_task_answers_in_its_own_way(opened: Opened, maker: TaskMaker) -> None:
    page = opened("reader")
    classify(page, maker.images[0], "birds", "tags", "told", "torn")
    expect(page.get_by_text("3 answers, and 1 failed.")).to_be_visible()
    assert card(page, "tags").get_by_role("listitem").count() == 2
    expect(card(page, "tags").get_by_role("listitem").first).to_contain_text("from 50.0 %")
    expect(card(page, "told").get_by_role("listitem").first).to_contain_text(MARKUP)
    expect(card(page, "told")).to_contain_text(re.compile(r"Unknown: 0\.\d{3}"))
    expect(card(page, "birds")).to_contain_text("has no statistics")
    expect(card(page, "torn").locator(".bad")).to_contain_text("is not a JSON object")


def test_above_its_threshold_an_unknown_image_gets_no_class(opened: Opened, maker: TaskMaker) -> None:
    page = opened("reader")
    page.get_by_label("Name no class if unknown is above").fill("0")
    classify(page, maker.images[15], "told")
    expect(card(page, "told")).to_contain_text("No class: the image is too unknown to this task.")


def test_where_no_label_reaches_its_threshold_the_page_says_so(opened: Opened, maker: TaskMaker) -> None:
    page = opened("reader")
    classify(page, maker.images[0], "never")
    expect(card(page, "never")).to_contain_text("None of its labels reaches its threshold.")


def test_an_error_has_the_words_of_the_service(opened: Opened, service: tuple[TestClient, str]) -> None:
    page = opened("reader")
    classify(page, b"no image", "birds")
    client, _ = service
    answer = client.post(
        "/classify", files={"image": ("some.png", b"no image")}, data={"task": "birds"}, headers=READER
    )
    assert answer.status_code == 415
    expect(card(page, "birds").locator(".bad")).to_have_text(answer.json()["detail"])


def test_the_page_asks_for_a_key_and_keeps_it_in_this_tab_alone(opened: Opened) -> None:
    page = opened()
    expect(page.get_by_text("send one of the service's API keys").first).to_be_visible()
    use(page, "wrong")
    expect(page.locator("#key-note")).to_contain_text("the service does not know this key")
    use(page, "reader")
    expect(row(page, "birds")).to_be_visible()
    page.reload()
    expect(row(page, "birds")).to_be_visible()
    kept = page.evaluate("[{ ...sessionStorage }, { ...localStorage }, document.cookie]")
    assert kept == [{"mosa-key": "reader"}, {}, ""]
    page.locator("#key-panel summary").click()
    page.get_by_role("button", name="Forget it").click()
    expect(row(page, "birds")).to_be_hidden()
    assert page.evaluate("sessionStorage.length") == 0


def test_a_task_is_pinned_and_let_go(opened: Opened) -> None:
    page = opened("root-key")
    button = page.get_by_role("button", name="Pin grains")
    button.click()
    expect(row(page, "grains").get_by_text("pinned")).to_be_visible()
    expect(button).to_have_attribute("aria-pressed", "true")
    expect(button).to_be_focused()
    button.click()
    expect(button).to_have_attribute("aria-pressed", "false")


def test_a_key_that_may_only_ask_changes_nothing(opened: Opened) -> None:
    page = opened("reader")
    page.get_by_role("button", name="Pin birds").click()
    expect(page.locator("#change-note")).to_have_text(
        "this key may ask, but not change tasks: send one of the service's admin keys"
    )


def test_without_a_key_nothing_is_there_that_changes_tasks(browser: Browser, client: TestClient) -> None:
    with behind_prefix(client) as address:
        page = browser.new_page()
        page.goto(f"{address}/ui")
        expect(row(page, "birds")).to_be_visible()
        assert page.get_by_role("button", name=re.compile("Pin|Roll back|Upload")).count() == 0
        page.close()


def test_a_version_is_uploaded_and_rolled_back(opened: Opened, maker: TaskMaker) -> None:
    turned = maker.make("fields", 9, method="linear", turn=1)
    digest = turned.bundle().digest[:12]
    page = opened("root-key")
    before = row(page, "fields").get_by_role("cell").nth(5).inner_text()
    page.get_by_label("Bundle").set_input_files(file(turned.pack(), "fields.mosa"))
    expect(page.get_by_label("Task", exact=True)).to_have_value("fields")
    page.get_by_role("button", name="Upload").click()
    expect(page.locator("#upload-note")).to_contain_text("send ?new_classes=true if that is meant")
    page.get_by_label("Serve other classes than before").check()
    page.get_by_role("button", name="Upload").click()
    expect(page.locator("#upload-note")).to_contain_text(f"fields serves version {digest}")
    expect(row(page, "fields")).to_contain_text(digest)

    page.get_by_role("button", name="Roll back… fields", exact=True).click()
    dialog = page.get_by_role("dialog", name="Roll back fields")
    expect(dialog.get_by_role("radio", name=before)).to_be_checked()
    dialog.get_by_role("button", name="Serve this version").click()
    expect(page.locator("#versions-note")).to_contain_text("send ?new_classes=true if that is meant")
    dialog.get_by_label("Serve other classes than now").check()
    dialog.get_by_role("button", name="Serve this version").click()
    expect(row(page, "fields")).to_contain_text(before)
    expect(page.get_by_role("button", name="Roll back… fields", exact=True)).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screen_reader_finds_names_roles_and_contrast(opened: Opened, maker: TaskMaker, scheme: str) -> None:
    # axe is a script that the page would refuse.
    page = opened("root-key", color_scheme=scheme, bypass_csp=True)
    classify(page, maker.images[0], "birds", "tags", "told", "torn")
    expect(card(page, "torn")).to_be_visible()
    row(page, "told").get_by_role("button", name="More").click()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.get_by_role("button", name="Roll back… birds").click()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_the_page_is_light_or_dark_as_the_reader_likes(opened: Opened) -> None:
    colours = {
        scheme: opened(color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    }
    assert colours == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}


def test_without_scripts_a_form_asks_one_task(
    browser: Browser, client: TestClient, maker: TaskMaker, tmp_path: Path
) -> None:
    image = tmp_path / "some.png"
    image.write_bytes(maker.images[2])
    with behind_prefix(client) as address:
        visit = NoScripts(browser.browser_type, f"{address}/ui")
        visit.wait_for("This page needs JavaScript to list the tasks")
        assert "Try an image" not in visit.text()
        visit.choose_file("#plain-image", image)
        visit.type("#plain-task", "birds")
        visit.page.keyboard.press("Enter")
        visit.wait_for('"label":"class-2"')
        visit.browser.close()


def test_the_description_of_the_api_is_shown_below_the_prefix(browser: Browser, address: str) -> None:
    page = browser.new_page()
    page.goto(f"{address}/docs")
    expect(page.get_by_text("/v1/tasks/{name}/rollback")).to_be_visible()
    expect(page.get_by_role("option", name=address)).to_be_attached()
    page.close()
