"""Files and folders that operating systems, network drives, notebooks and zip tools leave beside images."""

LEFTOVERS = frozenset(
    {
        # Windows
        "thumbs.db",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        "$recycle.bin",
        "found.000",
        "system volume information",
        # macOS; other files of it begin with a dot
        "__macosx",
        "icon\r",
        "network trash folder",
        "temporary items",
        "thevolumesettingsfolder",
        # Linux
        "lost+found",
        # Synology, QNAP, NetApp
        "@eadir",
        "@tmp",
        "#recycle",
        "#snapshot",
        "@recycle",
        "@recently-snapshot",
        "~snapshot",
        # Python, Picasa, ZoomBrowser
        "__pycache__",
        "picasa.ini",
        "zbthumbnail.info",
    }
)
"""Their names, in lower case."""

PREFIXES = ("._", "~$", "SYNOFILE_THUMB", "SYNOPHOTO_THUMB")
SUFFIXES = ("~", ":Zone.Identifier")


def leftover(name: str) -> bool:
    """Whether a file or folder of that name is a leftover. All hidden ones are."""
    lower = name.lower()
    return lower in LEFTOVERS or lower.startswith((".", *map(str.lower, PREFIXES))) or lower.endswith(_ENDS)


_ENDS = tuple(map(str.lower, SUFFIXES))


def shown_name(name: str) -> str:
    """The name by which a leftover is counted: names of one kind count together."""
    lower = name.lower()
    for prefix in PREFIXES:
        if lower.startswith(prefix.lower()):
            return f"{prefix}*"
    for suffix in SUFFIXES:
        if lower.endswith(suffix.lower()):
            return f"*{suffix}"
    return name.strip()
