"""A repository of models on the Hugging Face hub, by huggingface_hub. Its faults become one line each."""

import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mosa_deploy import __version__
from mosa_deploy.errors import HubError
from mosa_deploy.hub.remote import Contents
from mosa_deploy.utils.network import why_unreachable

LOG_IN = "set HF_TOKEN, or log in with `hf auth login`"

FORBIDDEN = (401, 403)


@dataclass(frozen=True)
class HubRemote:
    """See `mosa_deploy.hub.remote.Remote`."""

    repo: str
    """`OWNER/NAME`."""
    revision: str | None = None
    """None is the branch `main`."""
    token: str | None = field(default=None, repr=False)
    endpoint: str = constants.ENDPOINT

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.repo

    @cached_property
    def _api(self) -> HfApi:
        # Without a token, False: None would let the library look for one again.
        token = self.token or False
        return HfApi(self.endpoint, token=token, library_name="mosa-deploy", library_version=__version__)

    def prepare(self, private: bool) -> None:
        """Make the repository and the branch unless they are there.

        Raises:
            HubError: there is no token, or it does not allow that; or a public repository should be private.
        """
        if self.token is None:
            raise HubError(f"{self.repo}: writing to {self.endpoint} needs a token: {LOG_IN}")
        with self._in_one_line():
            # Without --private the owner's own default decides.
            self._api.create_repo(self.repo, private=private or None, exist_ok=True)
            if private and not self._api.model_info(self.repo).private:
                raise HubError(f"{self.repo} is there, and it is public: make it private in its settings first")
            if self.revision is not None:
                self._api.create_branch(self.repo, branch=self.revision, exist_ok=True)

    def contents(self) -> Contents:
        """The files of the revision's newest commit.

        Raises:
            HubError: there is no such repository or revision, or the hub cannot be reached.
        """
        with self._in_one_line():
            info = self._api.model_info(self.repo, revision=self.revision, files_metadata=True)
        return Contents({file.rfilename: file.size or 0 for file in info.siblings or ()}, info.sha)

    def read(self, contents: Contents, name: str) -> bytes:
        """Download a file of that commit.

        Raises:
            HubError: the hub cannot be reached.
        """
        with tempfile.TemporaryDirectory() as folder, self._in_one_line():
            path = self._api.hf_hub_download(self.repo, name, revision=contents.commit, local_dir=folder)
            return Path(path).read_bytes()

    def write(self, before: Contents, files: Mapping[str, bytes], stale: Collection[str], message: str) -> str:
        """Make one commit on top of what was listed; returns the repository and the commit.

        Raises:
            HubError: the token does not allow it, somebody else was faster, or the hub cannot be reached.
        """
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(name, content) for name, content in files.items()),
            *(CommitOperationDelete(name) for name in stale),
        ]
        with self._in_one_line():
            made = self._api.create_commit(
                self.repo,
                operations,
                commit_message=message,
                revision=self.revision,
                parent_commit=before.commit,
            )
        return f"{self.endpoint}/{self.repo}, commit {made.oid[:12]}"

    @contextmanager
    def _in_one_line(self) -> Iterator[None]:
        """Ask the hub; raises HubError with one line for whatever goes wrong."""
        # The library would retry for a minute.
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else why_unreachable(self.endpoint)
        if reason:
            raise HubError(self._unreachable(reason))
        try:
            yield
        except HubError:
            raise
        except Exception as error:  # The library raises its HTTP library's errors too: httpx's, or from 2.0 httpx2's.
            raise HubError(self._fault(error)) from error

    def _unreachable(self, reason: str) -> str:
        return f"{self.repo}: {self.endpoint} cannot be reached ({reason}): try again with a network, or use a folder"

    def _fault(self, error: Exception) -> str:
        """What went wrong, and the way out."""
        match error:
            case OfflineModeIsEnabled():
                return self._unreachable("offline mode")
            case GatedRepoError():
                return f"{self.repo}: its owner grants access on request: ask at {self.endpoint}/{self.repo}"
            case RepositoryNotFoundError():
                folder = f"; the folder of that name is ./{self.repo}" if Path(self.repo).exists() else ""
                private = "your token may not read it" if self.token else f"it is private: {LOG_IN}"
                return f"{self.repo}: no such repository on {self.endpoint}, or {private}{folder}"
            case RevisionNotFoundError():
                return f"{self.repo} has no revision {self.revision or 'main'}: name a branch, a tag or a commit of it"
            case HfHubHTTPError() if error.response.status_code in FORBIDDEN:
                rights = f"{self.endpoint}/settings/tokens makes one that may" if self.token else LOG_IN
                return f"{self.repo}: your token does not allow that ({error.response.status_code}): {rights}"
            case HfHubHTTPError():
                said = error.server_message or _headline(error)
                return f"{self.repo}: {self.endpoint} answered {error.response.status_code}: {said}"
        return f"{self.repo}: {type(error).__name__}: {_headline(error)}"


def _headline(error: Exception) -> str:
    """The first line of an error that has any text in it."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
