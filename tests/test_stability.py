"""What `docs/stability.md` promises is what the code has, and CHANGELOG.md has the form that the page relies on."""

import re

import mosa_deploy
from mosa_deploy.bundles.decision import DECISION_FORMAT, NOTE_FORMAT
from mosa_deploy.bundles.graph_index import INDEX_FORMAT
from mosa_deploy.bundles.record import RECORD_FORMAT
from mosa_deploy.cli import ORDER
from mosa_deploy.runtimes.tensorrt_record import ENGINES_FORMAT
from mosa_deploy.utils.variables import OTHERS
from serving.app import create_app
from serving.settings import Settings
from tests.support.walker import ROOT
from training.run_settings import RUN_FORMAT

FORMATS = (RECORD_FORMAT, RUN_FORMAT, INDEX_FORMAT, DECISION_FORMAT, NOTE_FORMAT, ENGINES_FORMAT)


def section(heading: str) -> str:
    """The part of the page below a heading."""
    page = (ROOT / "docs" / "stability.md").read_text()
    return page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_the_routes_are_those_of_the_description() -> None:
    described = create_app(Settings()).openapi()["paths"]
    routes = {f"{method.upper()} {path}" for path, item in described.items() for method in item}
    assert {*re.findall(r"^\| `([^`]+)` \|$", section("Routes"), flags=re.MULTILINE)} == routes


def test_the_formats_are_read_from_their_first_version_to_the_newest() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|.*\| ([\d to]+) \|$", section("Files"), flags=re.MULTILINE)
    read = {each.name: "1" if each.newest == 1 else f"1 to {each.newest}" for each in FORMATS}
    assert dict(rows) == read


def test_every_format_of_the_code_is_among_them() -> None:
    packages = ("mosa_deploy", "training", "export", "serving")
    sources = [path.read_text() for package in packages for path in (ROOT / package).rglob("*.py")]
    assert sum(len(re.findall(r"^\w+ = FileFormat\(", source, flags=re.MULTILINE)) for source in sources) == len(
        FORMATS
    )


def test_the_commands_are_those_of_mosa() -> None:
    assert {*re.findall(r"`mosa ([a-z]+)`", section("Commands"))} == {*ORDER}


def test_the_names_are_the_public_ones() -> None:
    assert {*re.findall(r"`(\w+)`", section("Python API"))} == {*mosa_deploy.__all__}


def test_the_variables_are_those_of_the_commands() -> None:
    assert {*re.findall(r"`(MOSA_[A-Z]+)`", section("Variables"))} == {*OTHERS}


KINDS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
"""What Keep a Changelog calls the parts of a version, in this order."""


def versions() -> list[str]:
    """The parts of CHANGELOG.md that belong to a version, the newest first."""
    return re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]


def test_the_changelog_lists_what_is_unreleased_then_versions_with_their_dates() -> None:
    first, *others = [version.partition("\n")[0] for version in versions()]
    assert first == "[Unreleased]"
    assert not [head for head in others if not re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", head)]


def test_a_version_of_the_changelog_has_parts_by_kind() -> None:
    for version in versions():
        parts = re.findall(r"^### (.*)$", version, flags=re.MULTILINE)
        assert parts
        assert parts == [kind for kind in KINDS if kind in parts]
