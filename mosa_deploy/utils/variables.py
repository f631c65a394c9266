"""Environment variables `MOSA_...` that nothing reads: a misspelt one would be ignored without a word."""

import os
from collections.abc import Collection

from mosa_deploy.errors import nearest

PREFIX = "MOSA_"

CLIENT = ("MOSA_ADDRESS", "MOSA_KEY")
"""The variables of the client."""

CACHE = "MOSA_HOME"
"""The folder for what is fetched once."""

OTHERS = (*CLIENT, CACHE)
"""The variables that commands read, and the service does not."""


def unread(known: Collection[str]) -> list[str]:
    """A line for each variable that is set and not known, with the nearest name that is."""
    lines = []
    for name in sorted(os.environ):
        if name.upper().startswith(PREFIX) and name not in known:
            # The prefix would make all of them look alike.
            near = nearest(name[len(PREFIX) :], [each.removeprefix(PREFIX) for each in known], cutoff=0.6)
            meant = " or ".join(PREFIX + each for each in near)
            lines.append(f"{name} is set, but nothing reads it" + (f": did you mean {meant}?" if near else ""))
    return lines


def unread_by_commands() -> list[str]:
    """The lines for variables that look like those of the commands; the service's may be set on the same machine."""
    return [line for line in unread(OTHERS) if "did you mean" in line]
