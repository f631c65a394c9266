"""An S3-compatible object store in a process of its own, which can be away, slow or read-only.

moto keeps the objects in memory, and honours If-None-Match. Every command on stdin is answered by a line on stdout.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

BUCKET = "models"
KEYS = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
READ = ("GET", "HEAD")


@dataclass(frozen=True)
class ObjectStore:
    """The running object store."""

    process: "subprocess.Popen[str]"
    address: str

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a client finds it, and may enter."""
        return {**KEYS, "AWS_ENDPOINT_URL_S3": self.address}

    def tell(self, command: str) -> str:
        """Send a command, and wait until it has been carried out: `down`, `up`, `delay SECONDS`, `readonly 0` or 1."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def upload(self, folder: Path, name: str) -> str:
        """Make a store of a folder; returns its URL."""
        system = fsspec.filesystem("s3", endpoint_url=self.address, key="someone", secret="secret")
        system.makedirs(BUCKET, exist_ok=True)
        system.put(str(folder), f"{BUCKET}/{name}", recursive=True)
        return f"s3://{BUCKET}/{name}"


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Start an empty object store on a free port, and end it."""
    command = [sys.executable, "-m", "tests.support.object_store"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield ObjectStore(process, process.stdout.readline().strip())
        finally:
            process.kill()


class Faults:
    """A WSGI application in front of another one: it waits, refuses to write, and writes one object at a time."""

    def __init__(self, inner: Callable[..., Iterable[bytes]]) -> None:
        self.inner, self.delay, self.read_only = inner, 0.0, False
        # moto looks whether a key is there, and then writes it: two threads could both find nothing.
        self._writing = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        time.sleep(self.delay)
        if environ["REQUEST_METHOD"] in READ:
            return self.inner(environ, start_response)
        if self.read_only:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("403 Forbidden", [("content-type", "application/xml")])
            return [DENIED]
        with self._writing:
            return self.inner(environ, start_response)


def run() -> None:
    """Serve until stdin ends."""
    # Only this process needs them.
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import BaseWSGIServer, make_server

    faults = Faults(DomainDispatcherApplication(create_backend_app))

    class Silent(MotoRequestHandler):
        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Thousands of lines would hide those of the services."""

    def listen(port: int) -> BaseWSGIServer:
        server = make_server("127.0.0.1", port, faults, threaded=True, request_handler=Silent)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server

    server = listen(0)
    print(f"http://127.0.0.1:{server.port}", flush=True)
    for line in sys.stdin:
        command, _, value = line.strip().partition(" ")
        if command == "down":
            server.shutdown()
            server.server_close()
        elif command == "up":
            server = listen(server.port)
        elif command == "delay":
            faults.delay = float(value)
        elif command == "readonly":
            faults.read_only = value == "1"
        print("done", flush=True)


if __name__ == "__main__":
    run()
