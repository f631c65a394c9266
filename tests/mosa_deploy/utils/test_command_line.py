from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mosa_deploy.errors import ConfigError
from mosa_deploy.utils.command_line import arguments_of, build, options_of, parse
from training.config import TuneConfig
from training.tune_options import AugmentOptions, ExecutionOptions, LabelOptions, ReadOptions, StreamOptions


@dataclass(frozen=True)
class Files:
    """Which files are written."""

    precision: str = "fp32"
    """The precision of every file."""


@dataclass(frozen=True)
class Config:
    """Do something."""

    task: str
    """What it is about."""
    epochs: int | None = None
    """Passes over the images."""
    experts: int | None = None
    """Sparse parts."""
    names: tuple[str, ...] = ()
    """Any names."""
    places: list[Path] = field(default_factory=lambda: [Path("here")])
    """Where to look."""
    files: Files = field(default_factory=Files)

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        if self.epochs == 0:
            raise ConfigError("--epochs 0: at least 1")


def shown(capsys: pytest.CaptureFixture[str], **arrangement: object) -> str:
    """The help, its frame removed and its spaces joined."""
    with pytest.raises(SystemExit) as end:
        parse(Config, "prog", ["--help"], **arrangement)  # type: ignore[arg-type] # as the test gives it
    assert end.value.code == 0
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_options_become_the_config() -> None:
    given = ["--task", "a", "--epochs", "3", "--names", "x", "y", "--places", "there", "--precision", "int8"]
    assert parse(Config, "prog", given) == Config("a", 3, None, ("x", "y"), [Path("there")], Files("int8"))


def test_what_is_left_out_keeps_its_default() -> None:
    assert parse(Config, "prog", ["--task", "a"]) == Config("a")


def test_a_group_changes_the_help_and_not_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    groups = {"mosa and mosl": ["experts"]}
    assert parse(Config, "prog", ["--task", "a", "--experts", "2"], groups).experts == 2
    assert "mosa and mosl options" in shown(capsys, groups=groups)


def test_the_help_says_what_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys)
    assert "Do something." in text
    assert "--task STR What it is about. (required)" in text
    assert "--precision STR The precision of every file. (default: fp32)" in text


def test_the_help_names_no_default_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys)
    assert "--epochs INT Passes over the images. --experts" in text
    assert "Any names. --places" in text
    assert "None" not in text


def test_a_hint_stands_in_for_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Passes over the images. (preset: 8)" in shown(capsys, hints={"epochs": "preset: 8"})


@pytest.mark.parametrize(
    "given", [[], ["--task"], ["--task", "a", "--epochs", "None"], ["--task", "a", "--epoch", "3"]]
)
def test_a_usage_error_ends_with_code_2(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(Config, "prog", given)
    assert end.value.code == 2
    assert "--task" in (text := capsys.readouterr().err) or "--epochs" in text


def test_what_the_config_refuses_is_its_own_error() -> None:
    with pytest.raises(ConfigError, match=r"^--epochs 0: at least 1$"):
        parse(Config, "prog", ["--task", "a", "--epochs", "0"])


@pytest.mark.parametrize(
    "config",
    [
        Config("a"),
        Config("a", 3, None, ("x", "y"), [Path("there"), Path("here")], Files("int8")),
        TuneConfig(
            "folder",
            data_dir=Path("flowers here"),
            labels=(Path("a.csv"), Path("b.csv")),
            targets=("q", "v"),
            lr=1e-5,
            ema=True,
            labelling=LabelOptions(multi_label=True),
            reading=ReadOptions(max_unreadable="2%"),
            streaming=StreamOptions(cache_size=1.5),
            augmentation=AugmentOptions("flip"),
            execution=ExecutionOptions(compile=True),
        ),
    ],
)
def test_a_config_is_written_as_the_command_line_that_is_read_into_it(config: Config | TuneConfig) -> None:
    assert parse(type(config), "prog", arguments_of(config)) == config


def test_options_of_a_group_go_by_their_own_names() -> None:
    assert options_of(Config) == {
        "task": str,
        "epochs": int | None,
        "experts": int | None,
        "names": tuple[str, ...],
        "places": list[Path],
        "precision": str,
    }
    assert build(Config, {"task": "a", "precision": "int8"}) == Config("a", files=Files("int8"))
