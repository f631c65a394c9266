"""What the OpenAPI description promises is kept, for requests made from it: valid ones, those at the edges, wrong ones.

Schemathesis checks each answer: its status and its content are described, nothing is a 5xx, what is invalid is refused,
and nothing is done without a key.
"""

import re
import shutil
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import negative_data_rejection

from mosa_deploy.bundles.archive import Archive
from serving.app import create_app
from serving.settings import Settings
from tests.support.app import ADMIN, GROWTH, memory, running, top
from tests.support.files import files_of
from tests.support.tasks import TaskMaker, picture

CONFIG = {
    "auth": {"openapi": {"HTTPBearer": {"bearer": "root-key"}}},
    # Names that are there: of a thousand made-up ones none would be.
    "dictionaries": {"tasks": {"values": ["birds", "cracks"]}},
    "parameters": {
        "path.name": {"dictionary": "tasks", "probability": 0.8},
        "body.task[*]": {"dictionary": "tasks", "probability": 0.8},
        "body.tasks": {"dictionary": "tasks", "probability": 0.5},
        "body.tasks[*]": {"dictionary": "tasks", "probability": 0.5},
        "query.task[*]": {"dictionary": "tasks", "probability": 0.8},
        "query.tasks[*]": {"dictionary": "tasks", "probability": 0.5},
    },
    # A schema cannot say which bytes are an image or a bundle, nor that `task` and `tasks` exclude each other.
    "checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", "400", "404", "409", "415", "422"]}},
}
Case = schemathesis.Case[Any]

for binary in ("application/zip", "image/*", "application/octet-stream"):
    schemathesis.openapi.media_type(binary, st.binary())
api = schemathesis.openapi.from_asgi(
    "/openapi.json", create_app(Settings()), config=schemathesis.Config.from_dict(CONFIG)
)
ASKED = ("/classify", "/v1/embed")
"""The routes that change nothing, although they are sent to by POST."""

REACHED = {
    ("POST /classify", 200),
    ("POST /v1/embed", 200),
    ("GET /v1/tasks", 200),
    ("GET /v1/tasks/{name}", 200),
    ("GET /v1/tasks/{name}/versions", 200),
    ("PUT /v1/tasks/{name}", 200),
    ("DELETE /v1/tasks/{name}", 204),
    ("POST /v1/tasks/{name}/pin", 200),
    ("POST /v1/tasks/{name}/rollback", 200),
}


def state_of(store: Path) -> dict[str, tuple[int, int, int]]:
    """Every file's number, size and time of change."""
    found = {path: path.stat() for path in store.rglob("*") if path.is_file()}
    return {str(path): (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


def holds_numbers(form: Any) -> bool:
    """Whether numbers are in a form's lists of texts: wrong by the description, they arrive as valid texts."""
    lists = [value for value in form.values() if isinstance(value, list)] if isinstance(form, dict) else []
    return any(isinstance(each, int | float) for value in lists for each in value)


@dataclass
class Watch:
    """A running service, its store, and the statuses that each route has answered."""

    client: TestClient
    store: Path
    bundles: Mapping[str, bytes]
    """By the path of their task."""
    seen: set[tuple[str, int]] = field(default_factory=set)

    def send(self, case: Case) -> None:
        """Check an answer by the description, and what it left in the store."""
        sent = self.real(case)
        before = state_of(self.store)
        excluded: list[Any] = [negative_data_rejection] if holds_numbers(case.body) else []
        answer = case.call_and_validate(app=self.client.app, excluded_checks=excluded, **sent)
        self.seen.add((f"{case.method} {case.path}", answer.status_code))
        if answer.status_code >= 400:
            assert "\n" not in answer.json()["detail"]
        if answer.status_code >= 400 or case.method == "GET" or case.path in ASKED:
            assert state_of(self.store) == before
        if answer.status_code == 204:
            # What is removed comes back, for the requests after this one.
            again = self.client.put(case.formatted_path, content=self.bundles[case.formatted_path], headers=ADMIN)
            assert again.status_code == 200

    def real(self, case: Case) -> dict[str, Any]:
        """Put images in the place of valid ones that were made up, and say what bundle to send for most valid ones."""
        body: Any = case.body
        if case.meta and case.meta.generation.mode is schemathesis.GenerationMode.POSITIVE:
            if isinstance(body, dict) and isinstance(body.get("image"), list):
                body["image"] = [*map(picture, range(len(body["image"][:3]))), *body["image"][3:]]
            elif isinstance(body, dict) and isinstance(body.get("image"), str):
                body["image"] = b64encode(picture()).decode()
            elif case.path in ASKED and isinstance(body, bytes):
                # Most made-up queries have both `task` and `tasks`, or no name that is there.
                case.query = {"task": ["birds"]} if len(body) % 2 == 0 else case.query
                return {"data": picture(len(body) % 3)}
            elif case.method == "PUT" and len(body) % 4:
                return {"data": self.bundles.get(case.formatted_path, next(iter(self.bundles.values())))}
        return {}


@pytest.fixture(scope="module")
def watch(
    maker: TaskMaker, archives: Mapping[str, Archive], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watch]:
    """The service before and after all requests."""
    store = Path(shutil.copytree(maker.root, tmp_path_factory.mktemp("described") / "store"))
    exported = files_of(store)
    bundles = {f"/v1/tasks/{name}": maker.make(name, 9).pack() for name in ("birds", "cracks")}
    with running(store, api_keys="a-key", admin_keys="root-key") as client:
        watch, used = Watch(client, store, bundles), memory()
        yield watch
        assert memory() - used < GROWTH
        client.headers.update(ADMIN)
        assert top(client, "fields", maker.images[3])[0] == "class-5"
    assert files_of(store).items() >= exported.items()


def answers_as_promised(route: str) -> Callable[..., None]:
    """The test of one route."""

    @api.include(name=route).parametrize()
    @settings(max_examples=40, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    def test(case: Case, watch: Watch) -> None:
        watch.send(case)

    made: Callable[..., None] = test
    return made


# Schemathesis would name the tests of all routes alike, and of those xdist would run only one.
for path, methods in api.raw_schema["paths"].items():
    for method in methods:
        name = re.sub(r"[^a-z0-9]+", "_", f"{method}{path}")
        globals()[f"test_answers_as_promised_{name}"] = answers_as_promised(f"{method.upper()} {path}")


def test_every_route_was_reached(watch: Watch) -> None:
    assert watch.seen >= REACHED
