"""Versions of the JSON files that we write: old ones are brought up to date, newer ones are refused in one line.

Every such file states its `format_version`. To change a format, append a migration to it, and keep a file of the
version before in `tests/fixtures`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mosa_deploy.errors import MosaError

VERSION_KEY = "format_version"

Fields = dict[str, Any]

Migration = Callable[[Fields], Fields]
"""Takes the fields of version n and returns those of version n + 1; the number itself is set for it."""


@dataclass(frozen=True)
class FileFormat:
    """One kind of file, with everything that is needed to read its earlier versions."""

    name: str
    error: type[MosaError]
    """What is raised for a file that cannot be read."""
    remedy: str
    """What the user can do about a damaged file."""
    migrations: tuple[Migration, ...] = ()
    """The first brings version 1 to version 2, and so on."""
    unstated: int | None = None
    """The version of the files that state none; None if every file must state it."""

    @property
    def newest(self) -> int:
        """The version that this release writes."""
        return len(self.migrations) + 1

    def upgrade(self, fields: Fields, where: str) -> Fields:
        """Bring the object of a file to the newest version; errors call the file `where`.

        Raises:
            MosaError: the format's own error, if the version is missing, unknown or newer than this release, or if a
                migration does not find what it needs.
        """
        version = fields.get(VERSION_KEY, self.unstated)
        if version is None:
            raise self.error(f"{where} states no format version: {self.remedy}")
        # `True` and 1.0 equal 1 in Python, but no release has written them.
        if type(version) is not int or version < 1:
            raise self.error(f"{where} has format version {version!r:.40}, which no {self.name} has: {self.remedy}")
        if version > self.newest:
            raise self.error(
                f"{where} has format version {version!s:.40}, this release reads 1 to {self.newest}:"
                " upgrade mosa-deploy"
            )
        try:
            for migrate in self.migrations[version - 1 :]:
                fields = migrate(fields)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise self.error(f"{where} is damaged ({type(error).__name__}): {self.remedy}") from None
        return fields | {VERSION_KEY: self.newest}
