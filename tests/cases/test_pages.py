"""What a browser gets: our own page at `/`, and the API's description, without a word from elsewhere."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from serving.pages import ASSETS, WEB
from tests.support.app import behind_prefix, running
from tests.support.tasks import TaskMaker

CHROMIUM = shutil.which("chromium")


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


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_loads_only_what_the_service_has_and_by_relative_addresses(client: TestClient, path: str) -> None:
    page = Addresses(client.get(path).text)
    assert not [address for address in page.found if re.match(r"/|\w+:", address)]
    for address in page.found - {"classify"}:
        assert client.get(f"/{address}").status_code == 200
    assert page.handlers == []


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_forbids_the_browser_whatever_else_it_might_load(client: TestClient, path: str) -> None:
    policy = client.get(path).headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "http" not in policy


def test_our_scripts_and_styles_name_no_other_site() -> None:
    for name, file in ASSETS.items():
        if file.parent == WEB and name != "icon.svg":
            assert "://" not in file.read_text()


def test_our_script_never_makes_markup_of_text() -> None:
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", (WEB / "index.js").read_text()
    )


@pytest.mark.parametrize("path", ["/redoc", "/docs/oauth2-redirect", "/web/..%2Fpages.py", "/web/pages.py", "/web"])
def test_there_are_no_other_pages(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_a_page_is_there_for_those_who_only_look(client: TestClient) -> None:
    response = client.head("/")
    assert (response.status_code, response.text) == (200, "")
    assert response.headers["content-type"] == "text/html; charset=utf-8"


def test_pages_need_no_key_but_tasks_do(maker: TaskMaker) -> None:
    with running(maker.root, api_keys="one", prefetch=0) as client:
        assert client.get("/").status_code == client.get("/docs").status_code == 200
        assert client.get("/v1/tasks").status_code == 401


def shown(address: str, folder: Path) -> str:
    """The page as a browser shows it, once its scripts have run."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}"]
    command += ["--virtual-time-budget=10000", "--dump-dom", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_tasks_and_api_below_a_prefix(client: TestClient, tmp_path: Path) -> None:
    with behind_prefix(client) as address:
        page = shown(f"{address}/", tmp_path)
        assert '<th scope="row">birds</th>' in page
        assert f"-F task=birds {address}/classify" in page
        docs = shown(f"{address}/docs", tmp_path)
        assert "/v1/tasks/{name}/rollback" in re.sub(r"<[^>]*>|\u200b", "", docs)
        assert f'<option value="{address}">' in docs


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_asks_for_the_key_that_the_service_wants(maker: TaskMaker, tmp_path: Path) -> None:
    with running(maker.root, api_keys="one", prefetch=0) as client, behind_prefix(client) as address:
        page = shown(f"{address}/", tmp_path)
    assert '<form id="key-form">' in page
    assert "This service asks for a key." in page
