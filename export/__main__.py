"""`python -m export`, which is `mosa export`."""

from export.arguments import export_config
from mosa_deploy.errors import command


@command
def main() -> None:
    """The command line."""
    config = export_config()
    from export.export import export

    export(config)


if __name__ == "__main__":
    main()
