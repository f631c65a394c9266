"""Follows what other services on the same store decide, so that all of them answer alike."""

import logging
import threading

from serving.changes import TaskChanges
from serving.decisions import Decisions

log = logging.getLogger("mosa_deploy.serving")

SECONDS = 2.0
"""How often a service looks for decisions of others."""


class Follower:
    """Looks at the decisions in the store again and again, until `close`."""

    def __init__(self, decisions: Decisions, changes: TaskChanges) -> None:
        self.decisions, self.changes, self.seconds = decisions, changes, SECONDS
        self._ended = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="mosa-follow", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self.seconds):
            self.try_look()

    def try_look(self) -> None:
        """Look; a store that cannot be read is one warning, until it can be read again."""
        try:
            self.look()
        except Exception as fault:  # fsspec's systems raise errors of their own
            if not self._failed:
                log.warning("the store cannot be read, changes of other services wait: %s", _headline(fault))
            self._failed = True
        else:
            self._failed = False

    def look(self) -> None:
        """Follow every decision that another service has made since the last look."""
        for name in self.decisions.changed():
            self.changes.follow(name)


def _headline(fault: Exception) -> str:
    return " ".join(str(fault).split())[:200] or type(fault).__name__
