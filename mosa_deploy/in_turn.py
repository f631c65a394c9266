"""Run command lines of `mosa` one after the other in one process, for the program that starts it.

    python -m mosa_deploy.in_turn '[["tune", "--task", "digits"], ["evaluate", "--bundle", "runs/digits"]]' PARENT

Libraries that take seconds to import are imported once for all of them. One line of JSON on stdout says how each
command ended: its exit code and its seconds. Everything that the commands print goes to stderr. The process ends after
the first command that fails, and with its parent.
"""

import json
import os
import shlex
import sys
import time
import traceback
from collections.abc import Sequence

from mosa_deploy.cli import main as mosa
from mosa_deploy.utils.processes import begin


def run(arguments: Sequence[str]) -> int:
    """Run one command line of `mosa` and return its exit code."""
    sys.argv = ["mosa", *arguments]
    try:
        mosa()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Run the command lines of the first argument for the process whose number is the second."""
    lines, parent = json.loads(sys.argv[1]), int(sys.argv[2])
    begin(parent)
    raise SystemExit(carry_out(lines))


def carry_out(lines: Sequence[Sequence[str]]) -> int:
    """Run command lines until one fails, and tell of each on stdout; returns the exit code of the last."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as told:
        os.dup2(2, 1)
        for line in lines:
            print(f"$ mosa {shlex.join(line)}", flush=True)
            start = time.monotonic()
            code = run(line)
            print(json.dumps({"code": code, "seconds": time.monotonic() - start}), file=told, flush=True)
            if code:
                return code
    return 0


if __name__ == "__main__":
    main()
