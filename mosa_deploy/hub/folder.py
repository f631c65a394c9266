"""A folder in the place of a repository: for a network drive, for a git clone, and without a network."""

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from mosa_deploy.errors import ConfigError, HubError
from mosa_deploy.hub.remote import Contents
from mosa_deploy.utils.files import replacing


@dataclass(frozen=True)
class FolderRemote:
    """See `mosa_deploy.hub.remote.Remote`."""

    folder: Path

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.folder)

    def prepare(self, private: bool) -> None:
        """Make it unless it is there.

        Raises:
            ConfigError: it is a file, or should be private.
        """
        if private:
            raise ConfigError(f"--private: who may read {self.folder} is up to its permissions: leave the flag out")
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"{self.folder} is a file: name a folder")
        self.folder.mkdir(parents=True, exist_ok=True)

    def contents(self) -> Contents:
        """Its files; folders and what is neither are left out.

        Raises:
            HubError: there is no such folder.
        """
        if not self.folder.is_dir():
            raise HubError(f"{self.folder}: no such folder; name one, or a repository of the hub as OWNER/NAME")
        return Contents({path.name: path.stat().st_size for path in self.folder.iterdir() if path.is_file()})

    def read(self, contents: Contents, name: str) -> bytes:
        """The bytes of a file."""
        return (self.folder / name).read_bytes()

    def write(self, before: Contents, files: Mapping[str, bytes], stale: Collection[str], message: str) -> str:
        """Write all files before any takes its name; returns the folder.

        Raises:
            WriteError: the disk has no room.
        """
        with ExitStack() as renaming:
            for name, content in files.items():
                renaming.enter_context(replacing(self.folder / name)).write_bytes(content)
        for name in stale:
            (self.folder / name).unlink(missing_ok=True)
        return str(self.folder)
