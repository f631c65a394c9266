"""The documentation as a site: what it loads, what it says of settings and routes, and the commands that it tells."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from docs.hooks import LINK, in_site, type_in_words, values
from mosa_deploy.cli import commands
from mosa_deploy.utils.variables import OTHERS
from serving.app import create_app
from serving.settings import Settings, variable
from tests.support.documents import blocks, command_lines
from tests.support.runs import Once
from tests.support.tasks import picture
from tests.support.walker import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))


def mosa_lines() -> Iterator[tuple[str, str]]:
    """Each command line with `mosa` in the docs, with the name of its page."""
    for page in PAGES:
        for line in [*command_lines(page), *command_lines(page, "text")]:
            if found := re.match(r"(?:\w+=\S+ )*mosa (\w.*)", line):
                yield page.name, found[1]


@pytest.fixture(scope="module")
def site(once: Once) -> Path:
    """The built site. `strict` in mkdocs.yml makes a broken link an error; --quiet would hide it from that too."""

    def build(folder: Path) -> None:
        command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
        environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return once("site", build)


class Loads(HTMLParser):
    """Collects what a browser loads by itself: scripts, styles, fonts, icons, pictures and frames, not links."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "link":
            self.found.append(given.get("href", ""))
        elif tag != "a":
            self.found += [given[name] for name in ("src", "srcset", "data", "poster") if name in given]
        self.found += re.findall(r"url\(([^)]*)\)", given.get("style", ""))


def loaded(page: str) -> list[str]:
    parser = Loads()
    parser.feed(page)
    return parser.found


def remote(addresses: list[str]) -> list[str]:
    return [address for address in addresses if re.match(r"""\s*["']?(https?:)?//""", address)]


def test_what_a_page_loads_is_found() -> None:
    page = """<link href="https://a/x.css"><script src="//b/y.js"></script><img src="c.png"><a href="https://d">d</a>"""
    assert remote(loaded(page)) == ["https://a/x.css", "//b/y.js"]


def test_the_site_loads_nothing_from_the_network(site: Path) -> None:
    pages = {path: path.read_text() for path in site.rglob("*.html")}
    assert len(pages) > len(PAGES)
    assert {str(path): remote(loaded(text)) for path, text in pages.items() if remote(loaded(text))} == {}
    styles = [path.read_text() for path in site.rglob("*.css")]
    assert styles
    assert not [style for style in styles if remote(re.findall(r"url\(([^)]*)\)", style)) or "@import" in style]


def test_no_page_makes_the_theme_fetch_mermaid(site: Path) -> None:
    assert not [path for path in site.rglob("*.html") if 'class="mermaid"' in path.read_text()]


def test_every_setting_is_in_the_table_with_its_meaning(site: Path) -> None:
    page = (site / "operate.html").read_text()
    assert "<!-- settings -->" not in page
    for name, field in Settings.model_fields.items():
        assert f"<code>{variable(name)}</code>" in page
        assert field.description, name


def test_every_route_is_described_with_its_statuses(site: Path) -> None:
    page = re.sub(r"<[^>]+>", "", (site / "http-api.html").read_text())
    described = create_app(Settings()).openapi()
    for path, item in described["paths"].items():
        for method, operation in item.items():
            start = page.index(f"{method.upper()} {path}&para;")
            refused = next(line for line in page[start:].splitlines() if line.startswith("Refuses with"))
            assert {*re.findall(r"\d{3}", refused)} == {each for each in operation["responses"] if each[0] != "2"}


def test_the_docs_name_only_variables_that_are_read() -> None:
    known = {variable(name) for name in Settings.model_fields} | {*OTHERS}
    named = {name for page in PAGES for name in re.findall(r"MOSA_[A-Z_]+", page.read_text())}
    assert {name.removesuffix("_FILE") for name in named} <= known


def test_every_command_of_mosa_is_in_the_docs() -> None:
    assert {line.split()[0] for _, line in mosa_lines()} >= commands().keys()


@pytest.mark.parametrize("name", sorted(commands()))
def test_commands_in_the_docs_have_their_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        commands()[name].load()(["--help"], f"mosa {name}")
    known = {*re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out)}
    lines = [(page, line) for page, line in mosa_lines() if line.split()[0] == name]
    unknown = {(page, option) for page, line in lines for option in {*re.findall(r"--[a-z][a-z-]*", line)} - known}
    assert not unknown


def test_the_loop_of_the_python_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    batch = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    given = {"batches": [batch], "names": list("abcdefghij"), "paths": [picture()]}
    exec(blocks(ROOT / "docs" / "python-api.md", "python")[0], given)
    assert type(given["plain"]).__name__ == "VisionTransformer"
    assert (tmp_path / "runs" / "mine" / "adapter.json").is_file()


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("serve.md", "](operate.md#keys)", "](operate.md#keys)"),
        ("index.md", "](../ARCHITECTURE.md)", "](project/ARCHITECTURE.md)"),
        ("project/CHANGELOG.md", "](docs/files.md)", "](../files.md)"),
        ("project/CONTRIBUTING.md", "](README.md)", "](../index.md)"),
        ("project/benchmarks/results/step.md", "](compare/compare.png)", "](compare/compare.png)"),
    ],
)
def test_links_out_of_docs_lead_to_copied_files(page: str, link: str, expected: str) -> None:
    assert LINK.sub(lambda found: in_site(found, page), link) == expected


def test_types_are_said_in_words() -> None:
    answer = {"anyOf": [{"$ref": "#/components/schemas/Answer"}, {"type": "null"}]}
    assert type_in_words(answer) == "[Answer](#answer) or null"
    assert type_in_words({"type": "array", "items": {"enum": ["a", "b"]}}) == "list of `a` or `b`"
    assert values({"type": "number", "exclusiveMinimum": 0.0}) == "number, above 0"
