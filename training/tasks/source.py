"""Find the user's images in a folder or an archive.

    <class>/<file>   or   {train,validation,test}/<class>/<file>

Either layout may lie below further common folders.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mosa_deploy.bundles.image_files import Parts, left_out, list_folder
from mosa_deploy.errors import DataError
from mosa_deploy.utils.files import printable
from mosa_deploy.utils.set_names import set_of
from training.tasks.archives import DAMAGED, WANTED, list_archive

Read = Callable[[], bytes]


@dataclass(frozen=True)
class Source:
    """The folders and files below one folder, by the parts of their relative paths."""

    name: str
    folders: frozenset[Parts]
    images: Mapping[Parts, Read]
    others: Mapping[Parts, str]
    """Files that are no images, and their kinds."""
    leftovers: frozenset[Parts]
    guessed: str | None = None
    """A name in a zip archive that is read by code page 437 for want of a better one."""

    @classmethod
    def open(cls, path: Path) -> "Source":
        """List a folder, or a tar or zip archive, whatever its suffix.

        Raises:
            DataError: there are no images, a folder cannot be listed, the archive is damaged or encrypted, or it has a
                link, a device or a path outside.
        """
        images: dict[Parts, Read]
        if not path.exists():
            raise DataError(f"--data-dir {path}: no such folder; {WANTED}")
        guessed = None
        try:
            if path.is_dir():
                listing = list_folder(path)
                images = {parts: path.joinpath(*parts).read_bytes for parts in listing.images}
            else:
                listing, contents, guessed = list_archive(path)
                images = {parts: partial(bytes, content) for parts, content in contents.items()}
        except DAMAGED as error:
            fault = f"cannot be read to its end ({type(error).__name__})"
            raise DataError(f"--data-dir {path} {fault}: {WANTED}, complete and readable") from None
        source = cls(
            str(path), frozenset(listing.folders), images, listing.others, frozenset(listing.leftovers), guessed
        )
        if not images:
            line = source.left_out()
            raise DataError(f"--data-dir {path} holds no images{f' ({line})' if line else ''}: {WANTED}")
        return source

    def tops(self) -> list[str]:
        """The names of the top folders, sorted."""
        return sorted(parts[0] for parts in self.folders if len(parts) == 1)

    def below(self, top: str) -> "Source":
        """The content of a top folder."""

        def inside(parts: Parts) -> bool:
            return parts[0] == top and len(parts) > 1

        return Source(
            f"{self.name}/{top}",
            frozenset(parts[1:] for parts in self.folders if inside(parts)),
            {parts[1:]: read for parts, read in self.images.items() if inside(parts)},
            {parts[1:]: kind for parts, kind in self.others.items() if inside(parts)},
            frozenset(parts[1:] for parts in self.leftovers if inside(parts)),
        )

    def unwrapped(self) -> "Source":
        """The source without common top folders that hold only folders. Folders such as `train` are kept."""
        tops = self.tops()
        if len(tops) != 1 or set_of(tops[0]):
            return self
        inner = self.below(tops[0])
        return inner.unwrapped() if inner.folders and not inner.loose() else self

    def loose(self) -> list[str]:
        """The names of the images at the top, outside any folder."""
        return sorted(parts[0] for parts in self.images if len(parts) == 1)

    def left_out(self) -> str | None:
        """The line that counts the files which are not read, by kind; None if there are none."""
        return left_out(self.others.values(), self.leftovers)

    def remarks(self) -> list[str]:
        """What the user should know about the files: those that are not read, and names that may be wrong."""
        line = self.left_out()
        guess = "names in the zip archive that are not marked as UTF-8 are read by code page 437, such as"
        return ([line] if line else []) + ([f"{guess} {self.guessed!r}"] if self.guessed else [])


def shown(parts: Parts) -> str:
    """A path as text that can be printed and written."""
    return printable("/".join(parts))
