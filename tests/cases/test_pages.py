"""What a browser gets: our own page at `/ui`, and the API's description, without a word from elsewhere.

What the page does in a browser is in `tests/serving/test_ui.py`.
"""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import pytest
from fastapi.testclient import TestClient

from serving.pages import ASSETS, WEB
from tests.support.app import running
from tests.support.tasks import TaskMaker

PAGES = ("/", "/ui", "/docs")
MOST_BYTES = 300_000
SCRIPTS = sorted(path for path in WEB.glob("*.js") if path.name != "docs.js")

LOADED = re.compile(r"""(?:href|src)="(web/[^"]+)"|(?:import|from) "\./([^"]+)";""")
"""A file beside a page, in the page's markup or in a module that imports it."""

NAMED = re.compile(r"""\b(?:at|say|filter)\("([\w-]+)"|\bbusy\([^,"]+, "([\w-]+)\"""")
"""An element of the page, as a script names it."""


def files_of_page(client: TestClient, path: str) -> dict[str, bytes]:
    """A page and all that it loads, modules that import each other too: path -> content."""
    found, waiting = dict[str, bytes](), [path]
    while waiting:
        at = waiting.pop()
        if at not in found:
            response = client.get(at)
            assert response.status_code == 200, at
            found[at] = response.content
            waiting += [urljoin(at, page or module) for page, module in LOADED.findall(response.text)]
    return found


class Addresses(HTMLParser):
    """Collects every address of a page: what it loads, where it leads, and where its forms go."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.handlers: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {value or "" for name, value in attrs if name in ("href", "src", "action")}
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name == "style"]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_loads_only_what_the_service_has_and_by_relative_addresses(client: TestClient, path: str) -> None:
    page = Addresses(client.get(path).text)
    assert not [address for address in page.found if re.match(r"/|\w+:", address)]
    for address in page.found - {"classify"}:
        assert client.get(f"/{address}").status_code == 200
    assert page.handlers == []


@pytest.mark.parametrize("path", PAGES)
def test_a_page_forbids_the_browser_whatever_else_it_might_load(client: TestClient, path: str) -> None:
    policy = client.get(path).headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "http" not in policy


def test_our_scripts_and_styles_name_no_other_site() -> None:
    for name, file in ASSETS.items():
        if file.parent == WEB and name != "icon.svg":
            assert "://" not in file.read_text()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_never_makes_markup_of_text_and_keeps_the_key_for_the_tab_alone(path: Path) -> None:
    unwanted = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage|indexedDB|cookie"
    assert not re.search(unwanted, path.read_text())


def test_our_page_lets_no_text_become_markup(client: TestClient) -> None:
    policy = client.get("/ui").headers["content-security-policy"]
    assert "require-trusted-types-for 'script'; trusted-types 'none'" in policy
    assert "unsafe" not in policy


def test_our_page_is_small_with_all_that_it_loads(client: TestClient) -> None:
    loaded = files_of_page(client, "/ui")
    assert {f"/web/{path.name}" for path in SCRIPTS} < loaded.keys()
    assert sum(map(len, loaded.values())) <= MOST_BYTES


def test_our_files_are_asked_for_again_after_an_upgrade(client: TestClient) -> None:
    for name in ("ui.js", "ui.css"):
        assert client.get(f"/web/{name}").headers["cache-control"] == "no-cache"


def test_a_script_has_its_type_whatever_the_machine_says(client: TestClient) -> None:
    for path in SCRIPTS:
        response = client.get(f"/web/{path.name}")
        assert response.headers["content-type"] == "text/javascript; charset=utf-8"
        assert response.headers["x-content-type-options"] == "nosniff"


def test_scripts_name_only_elements_that_the_page_has(client: TestClient) -> None:
    named = {one or other for path in SCRIPTS for one, other in NAMED.findall(path.read_text())}
    assert len(named) > 20
    assert named <= {*re.findall(r' id="([^"]+)"', client.get("/ui").text)}


def test_without_scripts_the_page_says_so_and_has_a_form_of_its_own(client: TestClient) -> None:
    page = client.get("/ui").text
    (instead,) = re.findall(r"<noscript>(.*?)</noscript>", page, flags=re.DOTALL)
    assert "This page needs JavaScript" in instead
    assert '<form action="classify" method="post" enctype="multipart/form-data">' in instead
    assert {*re.findall(r' name="(\w+)"', instead)} == {"image", "task"}
    assert '<main id="page" hidden>' in page


@pytest.mark.parametrize(
    "path", ["/redoc", "/docs/oauth2-redirect", "/web/..%2Fpages.py", "/web/pages.py", "/web/ui.html", "/web"]
)
def test_there_are_no_other_pages(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_a_page_is_there_for_those_who_only_look(client: TestClient) -> None:
    for path in PAGES:
        response = client.head(path)
        assert (response.status_code, response.text) == (200, "")
        assert response.headers["content-type"] == "text/html; charset=utf-8"


def test_pages_need_no_key_but_tasks_do(maker: TaskMaker) -> None:
    with running(maker.root, api_keys="one", prefetch=0) as client:
        assert [client.get(path).status_code for path in PAGES] == [200, 200, 200]
        assert client.get("/v1/tasks").status_code == 401
