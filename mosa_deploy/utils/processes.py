"""Processes that end with the one that started them, however that ends."""

import os
import signal
import threading
import time


def begin(parent: int) -> None:
    """How such a process begins. Ctrl-C reaches all processes of a terminal: the one that started it answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
