"""All errors that a user can cause, as one tree.

    MosaError
    ├── ConfigError      an option or a combination of options
    ├── DataError        images, folders, labels
    ├── BackboneError    a model's name, weights or structure
    ├── BundleError      a saved task that is damaged or does not fit
    ├── TrainingError    a run that cannot continue
    ├── ParityError      two stages of an export that should agree but do not
    ├── ProviderError    an execution provider that is not available
    ├── StoreError       the folder that holds what is served
    ├── StoreAccessError a store that does not answer, or refuses
    ├── HubError         a repository in which bundles are published
    ├── WriteError       a disk without enough space
    └── ServiceError     an error that a service answered

Each message is one line that names what is wrong and how to fix it.
"""

import difflib
import errno
import functools
import os
import sys
from collections.abc import Callable, Iterable, Sequence

LISTED = 20
"""The largest number of names that an error lists."""

FOLDER_VARIABLES = (
    *("MOSA_HOME", "HF_HUB_CACHE", "HF_HOME", "TORCH_HOME", "MPLCONFIGDIR", "BENTOML_HOME"),
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR", "HOME"),
)
"""Variables that name the folders to which libraries write, the most particular first."""

USAGE_EXIT = 2
"""The exit code after a user's mistake; argparse and tyro use the same."""


class MosaError(Exception):
    """Base class of all errors that the user can fix."""


class ConfigError(MosaError):
    """An option, or a combination of options, is invalid."""


class DataError(MosaError):
    """Images, folders or labels cannot be used."""


class BackboneError(MosaError):
    """The name, the weights or the structure of a model does not fit."""


class BundleError(MosaError):
    """A saved task is damaged or does not fit."""


class TrainingError(MosaError):
    """A run cannot continue."""


class ParityError(MosaError):
    """Two neighbouring stages of an export differ by more than the tolerance."""


class ProviderError(MosaError):
    """An execution provider that was asked for is not available."""


class StoreError(MosaError):
    """The folder of the store is missing or inconsistent."""


class StoreAccessError(MosaError):
    """A store cannot be reached, read or written now, which says nothing of what lies there."""


class HubError(MosaError):
    """A repository in which bundles are published is missing, cannot be reached or holds something else."""


class WriteError(MosaError):
    """The disk has not enough space for a file."""


class ServiceError(MosaError):
    """A service answered with an error. `status` is the HTTP status, or 0 if there was no answer."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


def listed(names: Sequence[str]) -> str:
    """`a, b and 3 more`: the first names of many."""
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> list[str]:
    """Up to three known names that are similar, in capitals or not; the most similar first."""
    # In small letters, or `DIGITS` would look like nothing that is known.
    folded = {each.casefold(): each for each in sorted(known, reverse=True)}
    if name.casefold() in folded:
        return [folded[name.casefold()]]
    return [folded[each] for each in difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=cutoff)]


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for an unknown name, with similar known names, or all of them if none is similar."""
    names = sorted(known)
    near = nearest(name, names)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {listed(names)}"
    return f"unknown {kind} '{name}'; {hint}"


def unwritable(error: OSError) -> str | None:
    """The message for a path that this user may not write, with the variable that names its folder; None for others."""
    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR) or error.filename is None:
        return None
    path = os.fspath(error.filename)
    path = os.fsdecode(path) if isinstance(path, bytes) else str(path)
    text = f"{path}: {error.strerror}"
    for variable in FOLDER_VARIABLES:
        folder = os.environ.get(variable, "").rstrip("/")
        if folder and (path == folder or path.startswith(f"{folder}/")):
            return f"{text}; {variable}={folder} names its folder: name one that this user can write"
    return f"{text}; name a place that this user can read and write"


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate the entry of a command: a `MosaError` becomes one line on stderr and exit code 2, not a traceback."""

    @functools.wraps(main)
    def guarded() -> None:
        try:
            main()
        except MosaError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(USAGE_EXIT) from None
        except OSError as error:
            if (text := unwritable(error)) is None:
                raise
            print(f"error: {text}", file=sys.stderr)
            raise SystemExit(USAGE_EXIT) from None
        except KeyboardInterrupt:
            print("interrupted; what was finished is kept", file=sys.stderr)
            raise SystemExit(130) from None

    return guarded
