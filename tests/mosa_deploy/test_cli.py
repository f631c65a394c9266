import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from mosa_deploy import __version__, cli
from tests.support.walker import ROOT, new_modules

HEAVY = {"torch", "timm", "torchvision", "sklearn", "onnx", "onnxruntime", "matplotlib", "scipy", "bentoml"}


def mosa(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `mosa` as a user does, from any folder."""
    command = [str(Path(sys.prefix, "bin", "mosa")), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


def test_help_names_every_command_with_what_it_does(tmp_path: Path) -> None:
    done = mosa("--help", cwd=tmp_path)
    assert done.returncode == 0
    for name in cli.ORDER:
        assert f"\n  {name} " in done.stdout
    assert "Tune one task's adapter and head on a frozen backbone.\n" in done.stdout
    assert "not installed" not in done.stdout


def test_without_arguments_it_is_the_help() -> None:
    assert mosa().stdout == mosa("--help").stdout


def test_version_is_the_packages() -> None:
    assert mosa("--version").stdout == f"mosa-deploy {__version__}\n"


def test_a_mistyped_command_is_one_line_with_the_nearest() -> None:
    done = mosa("tunee")
    assert (done.returncode, done.stderr) == (
        2,
        "error: unknown command 'tunee'; did you mean tune?; see mosa --help\n",
    )


def test_every_entry_point_of_the_project_is_in_the_order_of_the_help() -> None:
    assert {point.name for point in entry_points(group=cli.GROUP)} == set(cli.ORDER)


def test_the_help_loads_nothing_heavy() -> None:
    loaded = new_modules("from mosa_deploy import cli; [cli.summary(point) for point in cli.commands().values()]")
    assert {"mosa_deploy", "training", "export", "serving"} <= loaded
    assert not loaded & {*HEAVY, "numpy", "pydantic", "tyro"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("tune", "--help"),
        ("tune", "--task", "digit"),
        ("tune", "--task", "digits", "--data-dir", "nowhere"),
        ("tune", "--task", "digits", "--epochs", "0"),
        ("tune", "--task", "digits", "--epoch", "3"),
        ("evaluate", "--bundle", "nowhere"),
        ("compare", "--beside", "nowhere.csv"),
        ("fleet", "nowhere.toml"),
        ("export", "--bundle", "nowhere"),
        ("export", "--bundle", "nowhere", "--precision", "fp4"),
        ("convert", "--help"),
        ("latency", "--bundle", "nowhere"),
        ("predict", "nowhere"),
        ("ask", "image.png"),
        ("push", "nowhere", "./remote"),
        ("pull", "./nowhere"),
    ],
    ids=" ".join,
)
def test_arguments_are_checked_before_anything_heavy_is_imported(arguments: tuple[str, ...]) -> None:
    code = (
        f"import sys; sys.argv = ['mosa', *{arguments!r}]\n"
        "from mosa_deploy.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n"
        f"    print('\\nloaded:', *({HEAVY - {'onnxruntime'}!r} & set(sys.modules)), file=sys.stderr)\n"
        "    raise\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == (0 if "--help" in arguments else 2), done.stderr
    assert done.stderr.endswith("\nloaded:\n"), done.stderr
    assert "Traceback" not in done.stderr


def test_the_help_of_tune_shows_the_presets_values() -> None:
    text = " ".join(mosa("tune", "--help").stdout.replace("│", " ").split())
    assert "(default: None)" not in text
    assert "{None}" not in text
    assert "--epochs INT Number of passes over the training images. (preset: " in text
    assert "mosa and mosl options" in text


def test_the_help_shows_the_preset_of_the_task_that_is_named() -> None:
    text = " ".join(mosa("tune", "--task", "digits", "--help").stdout.replace("│", " ").split())
    assert "--epochs INT Number of passes over the training images. (preset: 8)" in text


def test_pack_writes_what_the_service_takes(digits_run: Path, tmp_path: Path) -> None:
    done = mosa("pack", str(digits_run), str(tmp_path / "digits.mosa"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "digits.mosa").read_bytes().startswith(b"PK")
