"""`python -m training.tasks`: list all tasks."""

from mosa_deploy.errors import command
from training.tasks.catalogue import print_catalogue


@command
def main() -> None:
    """The command line."""
    print_catalogue()


if __name__ == "__main__":
    main()
