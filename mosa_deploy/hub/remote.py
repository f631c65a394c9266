"""What `mosa push` and `mosa pull` ask of the place where a bundle is published."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from mosa_deploy.bundles.record import RECORD, TENSORS
from mosa_deploy.bundles.store_layout import VALIDATION

CARD = "README.md"

BUNDLE_FILES = (RECORD, TENSORS, VALIDATION)
"""All that is read of a remote, whatever else lies there; the last may be missing."""


@dataclass(frozen=True)
class Contents:
    """The files of a remote at one moment."""

    sizes: Mapping[str, int]
    """Name -> bytes."""
    commit: str | None = None
    """None in a folder."""


class Remote(Protocol):
    """A repository of the hub, or a folder."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def prepare(self, private: bool) -> None:
        """Make it unless it is there, so that it can be written.

        Raises:
            MosaError: this user may not, or it cannot be private.
        """
        ...

    def contents(self) -> Contents:
        """Its files.

        Raises:
            HubError: it is not there, or it cannot be reached or read.
        """
        ...

    def read(self, contents: Contents, name: str) -> bytes:
        """The bytes of a file as it was when its contents were listed.

        Raises:
            HubError: it cannot be reached or read.
        """
        ...

    def write(self, before: Contents, files: Mapping[str, bytes], stale: Collection[str], message: str) -> str:
        """Write files and remove others, in one change of what lies there; returns the place in words.

        Raises:
            HubError: it cannot be reached, or this user may not write.
        """
        ...
