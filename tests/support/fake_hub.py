"""A small model hub on this machine: the part of the Hugging Face hub's HTTP interface that bundles need."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]

TOKEN = "hf_writer"
"""The one token that may write."""

ERRORS = {"RepoNotFound": 404, "RevisionNotFound": 404, "GatedRepo": 403, "Forbidden": 403}


@dataclass
class FakeRepo:
    """A repository with one branch, or with several whose files are the same to begin with."""

    private: bool = False
    gated: bool = False
    branches: dict[str, Files] = field(default_factory=lambda: {"main": {}})

    def files(self, revision: str) -> Files | None:
        """The files of a branch or of a branch's newest commit."""
        found = {commit(files): files for files in self.branches.values()} | self.branches
        return found.get(revision)


@dataclass
class FakeHub:
    """The address of the hub, and its repositories by name."""

    endpoint: str = ""
    repos: dict[str, FakeRepo] = field(default_factory=dict)

    def reply(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, dict[str, str], bytes]:
        """Answer a request: status, headers and body."""
        parts = [unquote(part) for part in urlsplit(path).path.strip("/").split("/")]
        if method == "POST" and token != f"Bearer {TOKEN}":
            return refusal("Forbidden")
        match parts:
            case [""]:
                return 200, {}, b""
            case ["api", "validate-yaml"]:
                return answer({"errors": [], "warnings": []})
            case ["api", "repos", "create"]:
                return self.create(json.loads(body))
            case ["api", "models", owner, name, *rest] if f"{owner}/{name}" in self.repos:
                return models(self.repos[f"{owner}/{name}"], f"{owner}/{name}", rest, body)
            case [owner, name, "resolve", revision, file] if f"{owner}/{name}" in self.repos:
                return resolve(self.repos[f"{owner}/{name}"], revision, file)
        return refusal("RepoNotFound")

    def create(self, asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        """Make a repository; the hub answers 409 if it is there."""
        name = f"{asked['organization']}/{asked['name']}"
        status = 409 if name in self.repos else 200
        self.repos.setdefault(name, FakeRepo(private=asked.get("visibility") == "private"))
        return answer({"url": f"{self.endpoint}/{name}"}, status)


def models(repo: FakeRepo, name: str, rest: list[str], body: bytes) -> tuple[int, dict[str, str], bytes]:
    """What `/api/models/OWNER/NAME/...` answers."""
    if repo.gated:
        return refusal("GatedRepo")
    match rest:
        case ["branch", branch]:
            status = 409 if branch in repo.branches else 200
            repo.branches.setdefault(branch, dict(repo.branches["main"]))
            return answer({}, status)
        case ["preupload", _]:
            asked = json.loads(body)["files"]
            return answer(
                {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]}
            )
        case ["commit", branch]:
            return commit_to(repo.branches[branch], name, body)
    revision = rest[1] if rest[:1] == ["revision"] else "main"
    files = repo.files(revision)
    if files is None:
        return refusal("RevisionNotFound")
    siblings = [{"rfilename": file, "size": len(content)} for file, content in files.items()]
    return answer({"id": name, "private": repo.private, "sha": commit(files), "siblings": siblings})


def commit_to(files: Files, name: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
    """Apply the lines of a commit."""
    for line in map(json.loads, body.splitlines()):
        match line:
            case {"key": "file", "value": {"path": path, "content": content}}:
                files[path] = base64.b64decode(content)
            case {"key": "deletedFile", "value": {"path": path}}:
                del files[path]
            case {"key": "header", "value": {"parentCommit": parent}} if parent != commit(files):
                return refusal("Forbidden", 412)
    return answer({"success": True, "commitOid": commit(files), "commitUrl": f"{name}/commit/{commit(files)}"})


def resolve(repo: FakeRepo, revision: str, file: str) -> tuple[int, dict[str, str], bytes]:
    """A file of a commit."""
    files = repo.files(revision) or {}
    content = files[file]
    etag = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": revision}, content


def commit(files: Files) -> str:
    """A commit's name: the hash of its files."""
    digest = hashlib.sha1(usedforsecurity=False)
    for name, content in sorted(files.items()):
        digest.update(name.encode() + content)
    return digest.hexdigest()


def answer(value: object, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def refusal(code: str, status: int | None = None) -> tuple[int, dict[str, str], bytes]:
    """An error as the hub states it."""
    return status or ERRORS[code], {"X-Error-Code": code, "X-Error-Message": f"{code} says the hub"}, b""


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Start a hub without repositories."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, headers, content = hub.reply(self.command, self.path, body, self.headers.get("authorization"))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_HEAD = do_POST = do_GET  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
