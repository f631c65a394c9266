"""The tables of a fleet, beside another, as CSV, Markdown and one page of HTML."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mosa_deploy.errors import DataError
from training.fleet.options import TABLE
from training.fleet.report import PAGE, REPORT, tables, write_report
from training.fleet.rows import Row, put_beside, read_rows, write_rows

DONE = Row(
    task="digits",
    state="exported",
    asked="auto",
    method="lora",
    backbone="vit_small",
    measure="accuracy",
    validation=0.9,
    test=0.85,
    tune_seconds=10.0,
    seconds=12.5,
    bundle="ab" * 32,
    folder="fleet/store/tasks/digits",
    run="fleet/runs/digits",
    log="fleet/logs/digits.log",
    fault="",
)
LABELS = replace(DONE, task="scenes", asked="mosa", method="mosa", measure="map", validation=0.5, test=None)
FAILED = replace(
    DONE,
    task="roses",
    state="tune failed",
    method="",
    validation=None,
    test=None,
    bundle="",
    folder="",
    run="",
    fault="'<b>' & 2 others | cannot be read",
)
ROWS = [DONE, LABELS, FAILED]
BETTER = [replace(DONE, backbone="vit_base", test=0.875), replace(LABELS, validation=0.49)]


def test_the_table_says_what_auto_chose_and_which_figures_are_no_accuracies() -> None:
    text = tables(ROWS, [])
    assert "| digits | exported | lora, chosen by auto | 0.9000 | 0.8500 | 12 | abababababab |" in text
    assert "| scenes | exported | mosa | 0.5000 mAP | - | 12 |" in text
    assert "| roses | tune failed | auto | - | - | 12 |  |" in text


def test_old_and_new_stand_side_by_side_by_test_or_else_by_validation() -> None:
    text = tables(BETTER, put_beside(BETTER, ROWS))
    on = "lora, chosen by auto on vit_small | lora, chosen by auto on vit_base"
    assert f"| digits | 0.8500 | 0.8750 | +2.50 | 0.9000 | 0.9000 | {on} |" in text
    assert "| scenes | - | - | -1.00 | 0.5000 mAP | 0.4900 mAP |" in text
    assert "| roses | - | - | - | - | - | auto on vit_small | - |" in text
    assert "The mean difference is +0.75 points on test or validation, over 2 tasks; 1 are better and 1 worse" in text


def test_an_accuracy_is_not_compared_with_a_precision() -> None:
    (pair,) = put_beside([DONE], [replace(LABELS, task="digits")])
    assert pair.points is None


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_rows(tmp_path, ROWS)
    assert read_rows(tmp_path) == ROWS


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda text: text.replace("measure", "unit", 1), r"fleet\.csv has no column 'measure': run that fleet again"),
        (lambda text: text[:-30], r"fleet\.csv is damaged \(its last line is cut short\)"),
        (lambda text: text.replace(",vit_small", "", 1), r"fleet\.csv is damaged \(another number of columns"),
        (lambda text: text.replace("0.85", "good"), r"fleet\.csv is damaged \(could not convert"),
    ],
)
def test_an_earlier_fleet_that_cannot_be_read_is_named(tmp_path: Path, spoil: object, said: str) -> None:
    write_rows(tmp_path, ROWS)
    path = tmp_path / TABLE
    assert callable(spoil)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(DataError, match=said):
        read_rows(tmp_path)


class Page(HTMLParser):
    """Collects the tags, what they load, and the texts of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "data")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "li"):
            self.cells.append(data)


def test_the_page_is_whole_by_itself_and_shows_every_task(tmp_path: Path) -> None:
    write_report(tmp_path, ROWS, put_beside(ROWS, BETTER))
    text = (tmp_path / PAGE).read_text()
    page = Page()
    page.feed(text)
    assert page.open == page.loads == []
    assert not re.search(r"url\(|@import|<script", text)
    assert {"digits", "scenes", "roses", "lora, chosen by auto", "0.5000 mAP", "-2.50"} <= {*page.cells}
    assert f"roses: tune failed: {FAILED.fault}; see fleet/logs/digits.log" in "".join(page.cells)
    assert "--share: 85.0%" in text


def test_the_markdown_lists_what_failed(tmp_path: Path) -> None:
    write_report(tmp_path, ROWS, [])
    text = (tmp_path / REPORT).read_text()
    assert "2 of 3 tasks are done, 1 failed." in text
    assert f"- roses: tune failed: {FAILED.fault}; see " in text
