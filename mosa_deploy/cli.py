"""The command `mosa`, and those of its subcommands that need neither torch nor the service.

A subcommand is an entry point of the group `mosa.commands`: a function that takes the arguments and the program's name
for its help. The first line of its docstring is what `mosa --help` says of it. So this module imports none of the
packages that build on `mosa_deploy`, and other distributions can add commands of their own.
"""

import os
import sys
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from mosa_deploy import __version__
from mosa_deploy.errors import ConfigError, command, unknown_name
from mosa_deploy.runtimes.names import DEFAULT_RUNNER, RUNNERS

GROUP = "mosa.commands"

ORDER = (
    *("tune", "backbone", "evaluate", "compare", "fleet", "export", "convert", "latency", "pack", "predict", "score"),
    *("ask", "serve", "deploy", "push", "pull"),
)
"""Commands in the order in which a user meets them; others follow by name."""

ADDRESS = "http://localhost:3000"
"""The default address of a service."""

GATE_HELP = "a folder with one subfolder of images per class: a new version must not be worse on them"

THRESHOLD_HELP = "for several labels per image: the score from which on a label is answered, instead of its own"

USAGE = """\
usage: mosa COMMAND [OPTIONS]

One frozen vision transformer, hundreds of tasks, at the latency of the plain backbone.

{commands}

`mosa COMMAND --help` describes the options of a command; `mosa --version` prints the version."""


@command
def main() -> None:
    """Run the subcommand that the command line names."""
    name, *arguments = sys.argv[1:] or ["--help"]
    known = commands()
    if name in ("-h", "--help"):
        width = max(map(len, known))
        print(USAGE.format(commands="\n".join(f"  {each:{width}}  {summary(point)}" for each, point in known.items())))
    elif name == "--version":
        print(f"mosa-deploy {__version__}")
    elif name in known:
        if name not in ("serve", "score"):  # They read the service's, which names the others in its log.
            warn_of_variables()
        known[name].load()(arguments, f"mosa {name}")
    else:
        raise ConfigError(f"{unknown_name('command', name, known)}; see mosa --help")


def warn_of_variables() -> None:
    """Name each variable `MOSA_...` that looks like one of the commands' own, and that nothing reads."""
    from mosa_deploy.utils.variables import unread_by_commands

    for line in unread_by_commands():
        print(f"warning: {line}", file=sys.stderr)


def commands() -> dict[str, EntryPoint]:
    """The subcommands that are installed, by name."""
    found = {point.name: point for point in entry_points(group=GROUP)}
    first = [name for name in ORDER if name in found]
    return {name: found[name] for name in [*first, *sorted(found.keys() - {*first})]}


def summary(point: EntryPoint) -> str:
    """What a subcommand does, in one line; or what has to be installed for it."""
    try:
        return (point.load().__doc__ or "").partition("\n")[0]
    except ImportError as error:
        return f"not installed here ({error})"


def pack(arguments: Sequence[str] | None = None, prog: str = "python -m mosa_deploy.archive") -> None:
    """Pack a bundle into one .mosa file, for upload to a service."""
    parser = ArgumentParser(prog=prog, description=pack.__doc__)
    parser.add_argument("bundle", type=Path, help="folder with adapter.safetensors and adapter.json")
    parser.add_argument("out", type=Path, help="the .mosa file to write")
    parser.add_argument("--gate", type=Path, help=GATE_HELP)
    given = parser.parse_args(arguments)
    from mosa_deploy.bundles.archive import Archive
    from mosa_deploy.utils.files import write_bytes

    archive = Archive.of(given.bundle, given.gate)
    write_bytes(given.out, archive.pack())
    images = f", {len(archive.validation)} validation images among them" if archive.validation else ""
    print(f"{given.out}: {given.out.stat().st_size} bytes{images}")


def predict(arguments: Sequence[str], prog: str) -> None:
    """Classify images by an exported task, without a server, and write a CSV."""
    parser = ArgumentParser(prog=prog, description=predict.__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("task", type=Path, help="a task's folder in a store, such as artifacts/tasks/digits")
    parser.add_argument("images", type=Path, nargs="+", help="image files, or folders of images")
    parser.add_argument("--out", type=Path, default=Path("predictions.csv"), help="the CSV: file, class, score")
    top_k = "classes for each image, one line each; 1, or of several labels all that are answered, if not given"
    parser.add_argument("--top-k", type=int, help=top_k)
    parser.add_argument("--threshold", type=float, help=THRESHOLD_HELP)
    parser.add_argument("--batch", type=int, default=16, help="images that run together")
    parser.add_argument("--runner", default=DEFAULT_RUNNER, help=f"one of {', '.join(RUNNERS)}")
    given = parser.parse_args(arguments)
    from mosa_deploy.client.predict import PredictConfig
    from mosa_deploy.client.predict import predict as run

    run(PredictConfig(**vars(given)))


def ask(arguments: Sequence[str] | None = None, prog: str = "python -m serving.ask") -> None:
    """Ask a running service about images."""
    parser = ArgumentParser(prog=prog, description=ask.__doc__)
    parser.add_argument("images", type=Path, nargs="+", metavar="image", help="image files, or folders of images")
    parser.add_argument("--task", action="append", default=[], help="may be given several times")
    address = os.environ.get("MOSA_ADDRESS") or ADDRESS
    parser.add_argument("--address", default=address, help=f"MOSA_ADDRESS or {ADDRESS} if not given")
    parser.add_argument("--key", help="an API key; MOSA_KEY if not given")
    parser.add_argument("--top-k", type=int, help="how many classes to show; if not given, as many as the service says")
    parser.add_argument("--threshold", type=float, help=THRESHOLD_HELP)
    parser.add_argument("--abstain", type=float, help="show no class if the image is more unknown than this, 0 to 1")
    parser.add_argument("--embed", action="store_true", help="print features as JSON, without --task the backbone's")
    parser.add_argument("--backbone", help="with --embed, if the service has several")
    parser.add_argument("--normalise", action="store_true", help="with --embed, features of length 1")
    given = vars(parser.parse_args(arguments))
    if not given["task"] and not given["embed"]:
        parser.error("the following arguments are required: --task")
    from mosa_deploy.client.ask import AskConfig
    from mosa_deploy.client.ask import ask as run

    run(AskConfig(tasks=given.pop("task"), **given))


def deploy(arguments: Sequence[str], prog: str) -> None:
    """Upload a tuned task to a running service, and print what is served now."""
    parser = ArgumentParser(prog=prog, description=deploy.__doc__)
    parser.add_argument("source", type=Path, metavar="RUN", help="the folder of a run or a bundle, or a .mosa file")
    address = os.environ.get("MOSA_ADDRESS") or ADDRESS
    parser.add_argument("--to", default=address, metavar="URL", help=f"MOSA_ADDRESS or {ADDRESS} if not given")
    parser.add_argument("--key", help="an admin's key; MOSA_KEY if not given")
    parser.add_argument("--lane", choices=("shared", "folded"), help="how it is served from now on")
    parser.add_argument("--new-classes", action="store_true", help="serve other classes than before")
    parser.add_argument("--gate", type=Path, metavar="FOLDER", help=GATE_HELP)
    parser.add_argument("--margin", type=float, help="by how much its accuracy there may be lower")
    parser.add_argument("--force", action="store_true", help="serve it whatever the labelled images say")
    given = vars(parser.parse_args(arguments))
    from mosa_deploy.client.deploy import DeployConfig
    from mosa_deploy.client.deploy import deploy as run

    run(DeployConfig(address=given.pop("to"), **given))
