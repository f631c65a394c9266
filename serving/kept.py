"""What a service measured, kept in its store so that the next start need not measure it again.

Nothing depends on such a file: one that is damaged, or that another release wrote, is measured again.
"""

import logging
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from mosa_deploy.errors import MosaError, StoreAccessError
from serving.storage import Files

log = logging.getLogger("mosa_deploy.serving")

Kept = TypeVar("Kept", bound=BaseModel)


def recall(files: Files, path: str, kind: type[Kept]) -> Kept | None:
    """Read what was kept; None, with a line in the log if the file is damaged, if there is nothing to be used."""
    try:
        return kind.model_validate_json(files.read(path))
    except FileNotFoundError:
        return None
    except ValidationError as fault:
        log.warning("%s/%s is damaged (%s): it is measured again", files, path, type(fault).__name__)
    except (StoreAccessError, NotADirectoryError) as fault:
        log.warning("what was measured is measured again: %s", fault)
    return None


def remember(files: Files, path: str, found: BaseModel) -> None:
    """Keep what was measured; a line in the log if the store cannot be written."""
    try:
        files.write(path, found.model_dump_json(indent=2).encode() + b"\n")
    except MosaError as fault:
        log.info("what was measured will be measured again: %s", fault)
