import pytest

from export.arguments import export_config, latency_config
from mosa_deploy.runtimes.names import GRAPH_RUNNERS, PRECISIONS


def test_the_help_of_an_export_lists_every_runner_and_precision(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        export_config(["--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in (*GRAPH_RUNNERS, *PRECISIONS))


def test_the_help_of_a_timing_lists_every_runner(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        latency_config(["--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in GRAPH_RUNNERS)
