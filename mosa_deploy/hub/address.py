"""What REPO means in `mosa push` and `mosa pull`: a repository of the hub, or a folder."""

import re
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mosa_deploy.errors import ConfigError
from mosa_deploy.hub.folder import FolderRemote
from mosa_deploy.hub.remote import Remote

REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def open_remote(address: str, revision: str | None = None) -> Remote:
    """The remote of an address; nothing is read or written yet.

    Raises:
        ConfigError: it is neither a repository's name nor a folder, a folder should have a revision, or
            huggingface_hub is not installed.
    """
    folder = folder_of(address)
    if folder is not None:
        if revision is not None:
            raise ConfigError(f"--revision {revision}: the folder {folder} has no revisions: leave the flag out")
        return FolderRemote(folder)
    if not REPO.fullmatch(address):
        raise ConfigError(f"{address}: give OWNER/NAME on the hub, or a folder as ./NAME, /PATH or file:///PATH")
    require_library()
    from huggingface_hub import get_token

    from mosa_deploy.hub.repository import HubRemote

    return HubRemote(address, revision, get_token())


def folder_of(address: str) -> Path | None:
    """The folder that an address names; None if it is no path.

    Raises:
        ConfigError: a `file:` URL names another machine.
    """
    if address.startswith("file:"):
        parts = urlsplit(address)
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise ConfigError(f"{address}: the URL of a folder on this machine is file:///PATH")
        return Path(url2pathname(parts.path))
    # No name on the hub begins with a dot or a tilde.
    if address.startswith((".", "~")) or Path(address).is_absolute():
        return Path(address).expanduser()
    return None


def require_library() -> None:
    """Raises ConfigError if huggingface_hub is not installed."""
    try:
        import huggingface_hub  # noqa: F401 - only to see whether it is installed
    except ImportError:
        raise ConfigError(
            "huggingface_hub is not installed: pip install huggingface_hub; the extras train and export have it"
        ) from None
