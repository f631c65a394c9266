"""Folders that libraries write to beside what the user names: one that cannot be written is named by its variable."""

import os
import tempfile
from pathlib import Path

from mosa_deploy.errors import ConfigError
from mosa_deploy.utils.variables import CACHE


def require_temporary() -> None:
    """See to it that temporary files can be written.

    Raises:
        ConfigError: they cannot; the message names TMPDIR.
    """
    # Python falls back to another folder without a word, and other libraries do not.
    if named := os.environ.get("TMPDIR"):
        require_writable(Path(named), "TMPDIR")
    try:
        tempfile.gettempdir()
    except OSError:
        raise ConfigError("no folder for temporary files can be written: set TMPDIR to one that can") from None


def require_home(variable: str, default: str) -> None:
    """See to it that the folder which a variable names can be written, by default `default` below the home folder.

    Raises:
        ConfigError: it cannot; the message names the variable.
    """
    if named := os.environ.get(variable):
        require_writable(Path(named), variable)
        return
    require_writable(_home(variable) / default, "HOME", f"; {variable} can name another one")


def cache_folder() -> Path:
    """The folder for what is fetched once: MOSA_HOME, or `mosa-deploy` in XDG_CACHE_HOME or in ~/.cache.

    Raises:
        ConfigError: none of them is set, and this user has no home folder.
    """
    if named := os.environ.get(CACHE):
        return Path(named)
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "mosa-deploy"
    return _home(CACHE) / ".cache" / "mosa-deploy"


def require_cache() -> None:
    """See to it that the folder for what is fetched once can be written.

    Raises:
        ConfigError: it cannot; the message names the variable.
    """
    variable = next((name for name in (CACHE, "XDG_CACHE_HOME") if os.environ.get(name)), "HOME")
    require_writable(cache_folder(), variable, "" if variable == CACHE else f"; {CACHE} can name another one")


def _home(variable: str) -> Path:
    """The home folder; if there is none, an error that names the variable which can stand in for it."""
    try:
        return Path.home()
    except RuntimeError:
        raise ConfigError(
            f"this user has no home folder: set HOME or {variable} to a folder that can be written"
        ) from None


def require_writable(folder: Path, variable: str, more: str = "") -> None:
    """Make a folder, and a file in it for a moment.

    Raises:
        ConfigError: that cannot be done; the message names the variable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        value = os.environ.get(variable, "")
        raise ConfigError(
            f"{variable}={value}: {folder} cannot be written ({error.strerror}): name a folder that can{more}"
        ) from None
