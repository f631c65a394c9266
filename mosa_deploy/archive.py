"""`python -m mosa_deploy.archive`, which is `mosa pack`."""

from mosa_deploy.cli import pack
from mosa_deploy.errors import command


@command
def main() -> None:
    """The command line."""
    pack()


if __name__ == "__main__":
    main()
