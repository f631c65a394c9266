"""What the service reads from its environment, once, at start."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mosa_deploy.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    """Each field is the variable `MOSA_<FIELD>`."""

    artifacts: Path = Path("artifacts")
    """The store's root."""
    threads: int = 0
    """Cores for one inference; 0 takes all."""

    @classmethod
    def from_environment(cls) -> Self:
        """Read the variables that are set.

        Raises:
            ConfigError: a value that cannot be read.
        """
        threads = os.environ.get("MOSA_THREADS", "0")
        if not threads.isdecimal():
            raise ConfigError(f"MOSA_THREADS={threads}: give a whole number, 0 for all cores")
        return cls(artifacts=Path(os.environ.get("MOSA_ARTIFACTS", "artifacts")), threads=int(threads))
