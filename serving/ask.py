"""`python -m serving.ask`, which is `mosa ask`."""

from mosa_deploy.cli import ask, warn_of_variables
from mosa_deploy.errors import command


@command
def main() -> None:
    """The command line."""
    warn_of_variables()
    ask()


if __name__ == "__main__":
    main()
