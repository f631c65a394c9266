import re
import subprocess
import sys
from pathlib import Path

import pytest

from mosa_deploy.errors import ConfigError
from tests.support.miniatures import cub, vtab_lists
from training.tasks import BENCHMARKS, TASKS
from training.tasks.catalogue import CatalogueConfig, lines
from training.tasks.published import PUBLISHED, SOURCES

V_PETL_MEANS = {
    "fgvc": {"full": 88.54, "linear": 79.32, "Adapter": 85.66, "AdaptFormer": 88.48, "VPT-Deep": 89.10, "LoRA": 84.78},
    "vtab": {"full": 65.57, "linear": 52.94, "Adapter": 71.44, "BitFit": 62.05, "VPT-Deep": 69.43, "LoRA": 72.25},
}
"""The means that the source itself states."""


def text(data_dir: Path, only: str | None = None) -> str:
    return "\n".join(lines(CatalogueConfig(data_dir, only)))


def row(listing: str, task: str) -> list[str]:
    (line,) = (line for line in listing.split("\n") if line.startswith(f"| {task} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_task_is_listed_with_what_there_is_to_know(tmp_path: Path) -> None:
    vtab_lists(tmp_path / "vtab-1k" / "eurosat")
    cub(tmp_path / "fgvc" / "CUB_200_2011")
    listing = text(tmp_path)
    for name in TASKS:
        row(listing, name)
    assert row(listing, "vtab/eurosat")[1:7] == ["10", "800", "200", "5,400", "MIT", "present"]
    assert row(listing, "fgvc/cub")[1:7] == ["200", "5,394", "600", "5,794", "non-commercial research", "present"]
    assert row(listing, "vtab/kitti")[6] == "missing"
    assert row(listing, "vtab/eurosat")[7] == "linear 87.5, full 95.7, VPT-Deep 96.1"
    assert row(listing, "gicd/food101")[7] == "no figure verified"


def test_it_says_how_to_get_what_is_missing_and_nothing_of_what_is_here(tmp_path: Path) -> None:
    vtab_lists(tmp_path / "vtab-1k" / "eurosat")
    listing = text(tmp_path, "vtab")
    assert "  vtab-1k/dsprites_ori/ holds images/ beside train800.txt, val200.txt, test.txt\n" in listing
    assert "test.txt or Kitti/raw/training (torchvision's Kitti)\n" in listing
    assert "  vtab-1k/eurosat/" not in listing
    assert "fgvc/cub" not in listing
    assert f"looked for in {tmp_path}" in listing.replace("\n", " ")
    assert "ViT-B/16 pre-trained on ImageNet-21k, tuned on all 1,000 images" in listing.replace("\n", " ")


def test_unknown_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown group 'vtap'; did you mean vtab\?"):
        CatalogueConfig(only="vtap")


def test_the_command_lists_tasks_within_seconds_without_torch() -> None:
    program = "import sys; from training.tasks.catalogue import print_catalogue; print_catalogue([]);" + (
        "print(sorted({'torch', 'torchvision', 'timm', 'sklearn'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.endswith("[]\n")
    assert "| vtab/eurosat |" in done.stdout


@pytest.mark.parametrize("group", V_PETL_MEANS)
def test_published_figures_have_the_means_that_their_source_states(group: str) -> None:
    tasks = [task.name for task in BENCHMARKS if task.group == group]
    for method, mean in V_PETL_MEANS[group].items():
        own = sum(PUBLISHED[task][method] for task in tasks) / len(tasks)
        assert own == pytest.approx(mean, abs=0.011), method


def test_every_published_figure_has_a_source_and_no_other_task_has_figures() -> None:
    assert {name.partition("/")[0] for name in PUBLISHED} == SOURCES.keys()
    for source in SOURCES.values():
        assert all(source)
        assert re.search(r"ImageNet-21k", source.protocol)
