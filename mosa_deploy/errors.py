"""Every fault that a user can cause, as one tree.

    MosaError
    ├── ConfigError      an option or a combination of options
    ├── DataError        images, folders, labels
    ├── BackboneError    a model's name, weights or structure
    ├── BundleError      a saved task that is damaged or does not fit
    ├── TrainingError    a run that cannot go on
    ├── ParityError      two stages of the way that should agree and do not
    ├── ProviderError    an execution provider that is asked for and not there
    ├── StoreError       the folder that holds what is served
    ├── WriteError       a disk that has no room for what is to be written
    └── ServiceError     what a service says of a request

The text of each is one line that names the thing and the way out.
"""

import difflib
import functools
import sys
from collections.abc import Callable, Iterable

LISTED = 20
"""Names that an error lists at most."""

USAGE_EXIT = 2
"""The exit code of a user's mistake; argparse and tyro use the same."""


class MosaError(Exception):
    """Root of every fault that is the user's to mend."""


class ConfigError(MosaError):
    """An option, or a combination of options, that cannot be."""


class DataError(MosaError):
    """Images, folders or labels that cannot be used."""


class BackboneError(MosaError):
    """A model whose name, weights or structure does not fit."""


class BundleError(MosaError):
    """A saved task that is damaged or belongs elsewhere."""


class TrainingError(MosaError):
    """A run that cannot go on."""


class ParityError(MosaError):
    """Two neighbouring stages of the way that disagree by more than the tolerance."""


class ProviderError(MosaError):
    """An execution provider that was asked for and is not there."""


class StoreError(MosaError):
    """The folder of what is served is missing or inconsistent."""


class WriteError(MosaError):
    """A disk that has no room for what is to be written."""


class ServiceError(MosaError):
    """What a service said instead of an answer; `status` is HTTP's, 0 where none answered."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Text for an unknown name: the nearest known ones, or what is known if none is near."""
    names = sorted(known)
    listed = ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {listed}"
    return f"unknown {kind} '{name}'; {hint}"


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate a command line's entry: a `MosaError` becomes one line on stderr and exit code 2, never a traceback."""

    @functools.wraps(main)
    def guarded() -> None:
        try:
            main()
        except MosaError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(USAGE_EXIT) from None
        except KeyboardInterrupt:
            print("interrupted; what was finished is kept", file=sys.stderr)
            raise SystemExit(130) from None

    return guarded
