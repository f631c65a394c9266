"""A process that has imported libraries already, and forks one for every list of command lines that it is sent.

    python -m mosa_deploy.fork_server training.tune export.export

The arguments are modules to import. Requests come over stdin, a Unix socket, which ends the server when it is closed.
Each is three file descriptors: a pipe, whose first line is the list of command lines as JSON; a pipe for what
`mosa_deploy.in_turn` tells of them; and the log. Whoever asked closes the first to end the process at once, and so it
ends too when that program dies. A last line of the second says how the process ended: `{"exit": -9}`.

Nothing but imports may run here: a process that computes has threads, which a fork does not copy. Linux alone has the
pidfd on which the guard of each process waits.
"""

import atexit
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pkgutil import resolve_name

from mosa_deploy.in_turn import carry_out

STREAMS = 3
"""File descriptors of a request: what becomes stdin, stdout and stderr."""


def main() -> None:
    """Serve requests until the socket is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: who asks answers it.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Nobody waits for the guards.
    for module in sys.argv[1:]:
        with suppress(ImportError):  # The command that needs it says so.
            resolve_name(module)
    with socket.socket(fileno=os.dup(0)) as requests:
        while streams := socket.recv_fds(requests, 1, STREAMS)[1]:
            if os.fork() == 0:
                requests.close()
                guarded(streams)
                return
            for stream in streams:
                os.close(stream)


def guarded(streams: Sequence[int]) -> None:
    """Carry out a request in a process of its own, while this one waits for its end, or for that of who asked."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with os.fdopen(os.dup(0), encoding="utf-8") as request:
        lines = json.loads(request.readline() or "[]")
    if (child := os.fork()) == 0:
        carried_out(lines)
        return
    if sys.platform == "linux":
        ends = select.poll()
        ends.register(0, select.POLLHUP)
        ends.register(os.pidfd_open(child), select.POLLIN)
        if any(stream == 0 for stream, _ in ends.poll()):
            os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(BrokenPipeError):
        os.write(1, json.dumps({"exit": code}).encode() + b"\n")
    os._exit(0)


def carried_out(lines: Sequence[Sequence[str]]) -> None:
    """Carry out command lines. The process ends with them, and does not take all those libraries down one by one."""
    code = 1
    atexit.register(lambda: os._exit(code))  # It runs after what the commands register.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    code = carry_out(lines)


if __name__ == "__main__":
    main()
