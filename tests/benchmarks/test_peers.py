"""The comparison with other servers, in small: its report, and what it does where a server is not installed."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import peers
from benchmarks.peers_measure import Load, Measured, Setting, measure
from benchmarks.peers_processes import PEERS, too_many
from benchmarks.peers_report import report
from benchmarks.peers_tasks import MODELS, Exported
from mosa_deploy.errors import ConfigError


def measured(peer: str, rate: float, wrong: int = 0) -> Measured:
    return Measured(peer, "fp32", 8, "", 2.0, 300.0, 50.0, {16: Load(rate, 10.0, 20.0, 100, wrong)})


def written(out: Path, *rows: Measured) -> str:
    """The report of these rows."""
    given = peers.described(MODELS["embedded"], rows)
    (out / "embedded.json").write_text(json.dumps(given))
    return report(out)


def cells(text: str, title: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {title}"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_a_server_is_compared_with_ours_of_its_own_round(tmp_path: Path) -> None:
    rows = [measured("ours", 100), measured("ray", 50), measured("ray", 40), measured("ours", 120)]
    text = written(tmp_path, *rows)
    assert cells(text, PEERS["ray"].title)[1:3] == ["45.0 (10, 20)", "2.50 (2.00 - 3.00)"]
    assert cells(text, PEERS["ours"].title)[1:3] == ["110.0 (10, 20)", ""]
    assert "Wrong answers: none, of 400." in text


def test_wrong_answers_are_named(tmp_path: Path) -> None:
    text = written(tmp_path, measured("ours", 100), measured("bentoml", 50, wrong=3))
    assert f"Wrong answers: 3 of {PEERS['bentoml'].title}, of 200." in text


def test_what_is_not_installed_is_a_row_with_the_way_out(tmp_path: Path) -> None:
    peer, exported = replace(PEERS["ray"], needs=("no_such_library",)), Exported(tmp_path, None, (), 1)
    row = measure("ray", peer, "fp32", 8, exported, tmp_path, Setting((16,), 1, 1e9))
    text = written(tmp_path, measured("ours", 100), row)
    assert cells(text, peer.title)[1] == "not installed: no_such_library: pip install 'mosa-deploy[peers]'"


def test_a_server_whose_models_do_not_fit_is_not_started(tmp_path: Path) -> None:
    graph = tmp_path / "folded.onnx"
    graph.write_bytes(bytes(1000))
    assert too_many(PEERS["bentoml"], graph, 8, allowed=8000) is None
    assert re.match(r"does not fit: 8 models take at least", too_many(PEERS["bentoml"], graph, 8, 7999) or "")
    assert too_many(PEERS["ours"], graph, 8, allowed=1) is None


def test_a_lane_for_few_tasks_is_not_started_with_many(tmp_path: Path) -> None:
    graph = tmp_path / "folded.onnx"
    graph.write_bytes(b"")
    assert too_many(PEERS["ours-folded"], graph, 8, allowed=1) is None
    assert too_many(PEERS["ours-folded"], graph, 9, allowed=1) == "it is for at most 8 tasks"


def test_unknown_names_are_refused_all_at_once() -> None:
    with pytest.raises(ConfigError, match=r"'vit-b'.*'openvin'.*--rounds 0"):
        peers.Config(models="vit-b", only="openvin", rounds=0)


@pytest.mark.slow
def test_a_quick_run_gets_every_answer_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["peers", "--quick", "--only", "ours,bentoml", "--out", str(tmp_path)])
    peers.main()
    rows = json.loads((tmp_path / "embedded.json").read_text())["rows"]
    assert [(row["peer"], row["precision"]) for row in rows] == [
        ("ours", "fp32"),
        ("bentoml", "fp32"),
        ("ours", "best"),
        ("bentoml", "best"),
    ]
    for row in rows:
        assert [load["wrong"] for load in row["loads"].values()] == [0, 0], row
        assert all(load["answers"] > 10 for load in row["loads"].values())
