"""`python -m training.fleet`, which is `mosa fleet`."""

from mosa_deploy.errors import command
from training.commands import fleet


@command
def main() -> None:
    """The command line."""
    fleet(None, "python -m training.fleet")


if __name__ == "__main__":
    main()
