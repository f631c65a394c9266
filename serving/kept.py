"""What a service measured, kept in its store so that the next start need not measure it again.

Nothing depends on such a file: one that is damaged, or that another release wrote, is measured again.
"""

import logging
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from serving.storage import Files

log = logging.getLogger("mosa_deploy.serving")

Kept = TypeVar("Kept", bound=BaseModel)


def recall(files: Files, path: str, kind: type[Kept]) -> Kept | None:
    """Read what was kept; None, with a line in the log if the file is damaged, if there is nothing to be used."""
    try:
        return kind.model_validate_json(files.read(path))
    except FileNotFoundError:
        return None
    except (ValidationError, OSError) as fault:
        log.warning("%s/%s is damaged (%s): it is measured again", files, path, type(fault).__name__)
        return None


def remember(files: Files, path: str, found: BaseModel) -> None:
    """Keep what was measured; a line in the log if the store cannot be written."""
    try:
        files.write(path, found.model_dump_json(indent=2).encode() + b"\n")
    except Exception as fault:  # fsspec's systems raise errors of their own
        log.info("%s/%s cannot be written, so it will be measured again: %s", files, path, fault)
