"""The subcommands `mosa push` and `mosa pull`. Each imports its code only after its arguments have been checked."""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

REPO_HELP = "OWNER/NAME on the hub; or a folder, as ./NAME, /PATH or file:///PATH"

SIZE_LIMIT = 2048
"""The default of --max-size in MB; a whole ViT-L in fp32 has 1.2 GB."""


def push(arguments: Sequence[str], prog: str) -> None:
    """Publish a bundle with a model card, on the Hugging Face hub or in a folder."""
    parser = ArgumentParser(prog=prog, description=push.__doc__)
    parser.add_argument("bundle", type=Path, help="the folder of a run or of another bundle, or a .mosa file")
    parser.add_argument("repo", metavar="REPO", help=f"{REPO_HELP}; made if it is not there")
    parser.add_argument("--revision", metavar="BRANCH", help="a branch other than main; made if it is not there")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--license", metavar="ID", help="the licence that the card states, such as apache-2.0")
    images = "send the validation images too, by which a service judges int8: who can read the repository sees them"
    parser.add_argument("--validation-images", action="store_true", help=images)
    given = parser.parse_args(arguments)
    from mosa_deploy.hub.push import PushConfig
    from mosa_deploy.hub.push import push as run

    run(PushConfig(**vars(given)))


def pull(arguments: Sequence[str], prog: str) -> None:
    """Fetch a bundle from the Hugging Face hub or from a folder, and check it."""
    parser = ArgumentParser(prog=prog, description=pull.__doc__)
    parser.add_argument("repo", metavar="REPO", help=REPO_HELP)
    parser.add_argument("--revision", help="a branch, a tag or a commit; main if not given")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="a new folder; runs/NAME if not given")
    size = f"refuse a bundle of more than so many megabytes ({SIZE_LIMIT} if not given)"
    parser.add_argument("--max-size", type=int, default=SIZE_LIMIT, metavar="MB", help=size)
    given = parser.parse_args(arguments)
    from mosa_deploy.hub.pull import PullConfig
    from mosa_deploy.hub.pull import pull as run

    run(PullConfig(**vars(given)))
