import re
from pathlib import Path

import pytest

from benchmarks.precision import (
    TIMED,
    Config,
    Quality,
    build_table,
    builds,
    quality_table,
    speed_table,
    speeds,
    write_files,
    write_rows,
)
from mosa_deploy.backbones import embedded


def test_every_precision_is_timed_at_every_batch_against_fp32(tmp_path: Path) -> None:
    config = Config(backbone=embedded.ARCHITECTURE, batch_sizes=(1, 2), seconds=0.2, sessions=2, threads=1)
    rows = speeds(config, write_files(config, tmp_path))
    assert [(row.precision, row.batch) for row in rows] == [(name, size) for size in (1, 2) for name in TIMED]
    for row in rows:
        assert row.low <= row.speedup <= row.high
        assert row.rounds >= 10
    sizes = {row.precision: row.megabytes for row in rows}
    assert sizes["fp32"] == sizes["control"] > 1.8 * sizes["fp16"] > 2.8 * sizes["int8"]
    assert len(speed_table(rows).splitlines()) == 2 + len(rows)
    write_rows(tmp_path / "rows.csv", rows)
    columns, first, *_ = (tmp_path / "rows.csv").read_text().splitlines()
    assert columns.startswith("precision,batch,median_ms,")
    assert first.startswith("fp32,1,")


def test_engines_are_built_of_every_precision(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    config = Config(backbone=embedded.ARCHITECTURE, batch_sizes=(1, 2))
    rows = builds(config, write_files(config, tmp_path))
    assert [row.precision for row in rows] == ["fp32", "fp16", "int8"]
    assert all(row.megabytes > 1 and row.seconds > 0 for row in rows)
    assert rows[0].megabytes > rows[1].megabytes
    assert len(build_table(rows).splitlines()) == 5


def test_a_change_is_written_in_points_with_its_sign() -> None:
    row = Quality("digits", "folded.int8.onnx", 3.3, accuracy=0.975, change=-0.55, nll=0.05, ece=0.02)
    assert re.search(r"\| 0\.9750 \| -0\.55 \|", quality_table([row]))
