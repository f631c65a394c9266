"""`python -m serving.ask`, which is `mosa ask`."""

from mosa_deploy.cli import ask
from mosa_deploy.errors import command


@command
def main() -> None:
    """The command line."""
    ask()


if __name__ == "__main__":
    main()
