"""Follows what other services on the same store decide, so that all of them answer alike."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

from mosa_deploy.errors import StoreAccessError
from serving.changes import TaskChanges
from serving.decisions import Decisions

log = logging.getLogger("mosa_deploy.serving")

SECONDS = 2.0
"""How often a service looks for decisions of others."""

TOGETHER = 4
"""How many tasks are followed at the same time: most of it is waiting for the store."""

JOIN_SECONDS = 5.0
"""How long a service that ends waits for a look at a store that does not answer."""


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
        self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        while not self._ended.wait(self.seconds):
            self.try_look()

    def try_look(self) -> None:
        """Look; a store that cannot be read is one warning, until it can be read again."""
        try:
            self.look()
        except StoreAccessError as fault:
            if not self._failed:
                log.warning("changes of other services wait: %s", fault)
            self._failed = True
        else:
            if self._failed:
                log.info("the store can be read again")
            self._failed = False

    def look(self) -> None:
        """Follow every decision that another service has made since the last look.

        Raises:
            StoreAccessError: the store cannot be read; the rest is followed at the next look.
        """
        if names := self.decisions.changed():
            with ThreadPoolExecutor(TOGETHER, thread_name_prefix="mosa-follow") as pool:
                faults = [*pool.map(self._follow, names)]
            if fault := next((each for each in faults if each), None):
                raise fault

    def _follow(self, name: str) -> StoreAccessError | None:
        """Follow what was decided about a task; returns why the store cannot be read."""
        if self._ended.is_set():
            return None
        try:
            self.changes.follow(name)
        except StoreAccessError as fault:
            return fault
        except Exception:  # one task must not keep the others from being followed
            log.exception("%s is not followed: it is tried again", name, extra={"task": name})
        return None
