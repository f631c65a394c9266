"""Decisions in a store: one file for each revision, so that of two services only one writes the next."""

from mosa_deploy.bundles.decision import Decision, parse_decision
from mosa_deploy.bundles.store_layout import DECISIONS, decision_file, newest_revisions
from serving.errors import RequestError
from serving.storage import LocalFiles, RemoteFiles

LEFT = 3
"""How many revisions before the new one are removed: more than one if a killed process left them."""


class Decisions:
    """Reads the decision that holds for a task, and writes the next one if no other service has."""

    def __init__(self, files: LocalFiles | RemoteFiles) -> None:
        self.files = files
        self._known: dict[str, int] = {}
        """Task -> the revision that was read or written last."""

    def revisions(self) -> dict[str, int]:
        """Task -> the revision that holds."""
        return newest_revisions(self.files.names(DECISIONS))

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

    def write(self, name: str, decision: Decision) -> None:
        """Write the decision that follows the one that was read or written last; it holds from now on.

        Raises:
            RequestError: 409, another service has decided about the task meanwhile.
        """
        revision = self._known.get(name, 0) + 1
        try:
            self.files.create(decision_file(name, revision), decision.model_dump_json(indent=2).encode() + b"\n")
        except FileExistsError:
            raise RequestError(
                409, f"another service has changed '{name}' meanwhile: look at GET /v1/tasks/{name}, and send it again"
            ) from None
        self._known[name] = revision
        for before in range(max(0, revision - LEFT), revision):
            self.files.remove(decision_file(name, before))
