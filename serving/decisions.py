"""Decisions in a store: one file for each revision, so that of two services only one writes the next."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mosa_deploy.bundles.decision import Decision, parse_decision
from mosa_deploy.bundles.store_layout import DECISIONS, decision_file, decision_revisions
from mosa_deploy.errors import StoreAccessError
from serving.errors import RequestError
from serving.storage import LocalFiles, RemoteFiles

KEPT = 4
"""How many revisions of a task stay in the store.

A service that has missed fewer finds the number taken that it would write next. One that has missed more could write
it, because that file was removed: it sees so afterwards, by the revisions that are there.
"""


class Decisions:
    """Reads the decision that holds for a task, and writes the next one if no other service has."""

    def __init__(self, files: LocalFiles | RemoteFiles) -> None:
        self.files = files
        self._known: dict[str, int] = {}
        """Task -> the revision that was read or written last."""

    def revisions(self) -> dict[str, int]:
        """Task -> the revision that holds."""
        return {name: max(found) for name, found in decision_revisions(self.files.names(DECISIONS)).items()}

    def changed(self) -> list[str]:
        """The tasks about which another service has decided since."""
        return sorted(name for name, revision in self.revisions().items() if revision != self._known.get(name))

    def read(self, name: str, revision: int | None = None) -> Decision | None:
        """The decision that holds for a task, None if there is none; `revision` is the one that was listed last.

        Raises:
            StoreError: it is damaged, or was written by a newer release.
        """
        while (revision := self.revisions().get(name) if revision is None else revision) is not None:
            path = decision_file(name, revision)
            try:
                content = self.files.read(path)
            except FileNotFoundError:
                revision = None  # the next one has taken its place
                continue
            self._known[name] = revision
            return parse_decision(content, f"{self.files}/{path}")
        return None

    @contextmanager
    def followed_whole(self, name: str) -> Iterator[None]:
        """If what a decision needs cannot be read after it was read, it counts as unread, and is read again later."""
        before = self._known.get(name)
        try:
            yield
        except BaseException:
            self._known.pop(name, None)
            if before is not None:
                self._known[name] = before
            raise

    def write(self, name: str, decision: Decision) -> None:
        """Write the decision that follows the one that was read or written last; it holds from now on.

        Raises:
            RequestError: 409, another service has decided about the task meanwhile.
        """
        revision = self._known.get(name, 0) + 1
        path, content = decision_file(name, revision), decision.model_dump_json(indent=2).encode() + b"\n"
        try:
            self.files.create(path, content)
        except FileExistsError:
            if not self._holds(path, content):
                raise _late(name) from None
        found = decision_revisions(self.files.names(DECISIONS)).get(name, [])
        if max(found, default=revision) >= revision + KEPT:
            self.files.remove(path)
            raise _late(name)
        self._known[name] = revision
        for before in found:
            if before <= revision - KEPT or before == 0:
                with suppress(StoreAccessError):  # the next write removes it
                    self.files.remove(decision_file(name, before))

    def _holds(self, path: str, content: bytes) -> bool:
        """Whether a file is what this service wrote: a filesystem repeats a request whose answer was lost."""
        try:
            return self.files.read(path) == content
        except FileNotFoundError:
            return False


def _late(name: str) -> RequestError:
    return RequestError(
        409, f"another service has changed '{name}' meanwhile: look at GET /v1/tasks/{name}, and send it again"
    )
