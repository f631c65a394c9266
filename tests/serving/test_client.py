import asyncio
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from mosa_deploy.bundles.archive import Archive
from mosa_deploy.client import Answer, AsyncClient, Client, Embedding, Failure
from mosa_deploy.errors import ServiceError
from tests.support.service import Server, serve
from tests.support.tasks import TaskMaker


@pytest.fixture(scope="module")
def server(
    maker: TaskMaker, archives: Mapping[str, Archive], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("client")
    shutil.copytree(maker.root, folder / "artifacts")
    with serve(folder / "artifacts", folder, admin_keys="root-key", threads="1") as server:
        server.wait_until("ready")
        yield server


def test_one_image_many_images_and_many_tasks(server: Server, maker: TaskMaker) -> None:
    with Client(server.address) as client:
        assert client.classify(maker.images[2], "birds").label == "class-2"
        asked = [(image, ("birds", "cracks")[i % 2]) for i, image in enumerate(maker.images)]
        answers = list(client.classify_many(asked, batch=5))
        assert [each.label for each in answers if isinstance(each, Answer)] == [f"class-{i + i % 2}" for i in range(16)]
        by = client.classify_by(maker.images[0], ["birds", "cracks", "dogs"])
        assert [getattr(each, "label", None) for each in by] == ["class-0", "class-1", None]


@pytest.mark.parametrize("before", [0, 1])
def test_a_broken_image_is_a_failure_whatever_the_size_of_its_batch(
    server: Server, maker: TaskMaker, before: int
) -> None:
    pairs = [*[(maker.images[0], "birds")] * before, (b"text", "birds")]
    with Client(server.address) as client:
        *_, last = client.classify_many(pairs, batch=2)
    assert isinstance(last, Failure)
    assert last.status == 415


def test_an_image_is_given_by_its_path(server: Server, maker: TaskMaker, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(maker.images[2])
    with Client(server.address) as client:
        assert client.classify(str(tmp_path / "photo.png"), "birds").label == "class-2"


def test_the_client_returns_what_the_service_sends(server: Server) -> None:
    sent = httpx.get(f"{server.address}/v1/tasks").json()["tasks"]
    with Client(server.address) as client:
        assert [task.model_dump(mode="json") for task in client.tasks()] == sent


def test_the_async_client_says_the_same(server: Server, maker: TaskMaker) -> None:
    async def asked() -> list[str | None]:
        async with AsyncClient(server.address) as client:
            answers = await asyncio.gather(*(client.classify(image, "cracks") for image in maker.images))
            many = await client.classify_many([(image, "birds") for image in maker.images], batch=7)
            by = await client.classify_by(maker.images[0], ["birds", "fields"])
            assert {"birds", "cracks"} <= {task.task for task in await client.tasks()}
        return [each.label for each in (*answers, *many, *by) if isinstance(each, Answer)]

    expected = [f"class-{i + turn}" for turn in (1, 0) for i in range(16)] + ["class-0", "class-2"]
    assert asyncio.run(asked()) == expected


@pytest.fixture
def admin(server: Server) -> Iterator[Client]:
    """The client of one who may change tasks."""
    with Client(server.address, "root-key") as client:
        yield client


def test_a_bundle_is_put_from_its_folder(admin: Client, maker: TaskMaker, tmp_path: Path) -> None:
    archive = maker.make("moths", 3)
    for name, content in (("adapter.json", archive.record), ("adapter.safetensors", archive.tensors)):
        (tmp_path / name).write_bytes(content)
    assert admin.put("moths", str(tmp_path)).bundle == archive.bundle().digest


def test_a_bundle_is_put_from_a_file_into_a_lane(admin: Client, maker: TaskMaker, tmp_path: Path) -> None:
    archive = maker.make("newts", 4)
    (tmp_path / "newts.mosa").write_bytes(archive.pack())
    put = admin.put("newts", tmp_path / "newts.mosa", lane="folded")
    assert (put.bundle, put.lane) == (archive.bundle().digest, "folded")


def test_a_task_is_replaced_and_rolled_back(admin: Client, maker: TaskMaker) -> None:
    first, second = maker.make("owls", 3), maker.make("owls", 4)
    for archive in (first, second):
        assert admin.put("owls", archive.pack()).bundle == archive.bundle().digest
    assert admin.roll_back("owls").bundle == first.bundle().digest
    assert admin.task("owls").state == "active"


def test_a_task_is_pinned_and_let_go(admin: Client) -> None:
    assert admin.pin("birds").pinned
    assert not admin.pin("birds", pinned=False).pinned


def test_a_removed_task_is_unknown(admin: Client, maker: TaskMaker) -> None:
    admin.put("wasps", maker.make("wasps", 3).pack())
    admin.remove("wasps")
    with pytest.raises(ServiceError, match="unknown task 'wasps'") as caught:
        admin.task("wasps")
    assert caught.value.status == 404


def test_the_async_client_changes_tasks_too(server: Server, maker: TaskMaker) -> None:
    first, second = maker.make("bats", 3), maker.make("bats", 4)

    async def change() -> None:
        async with AsyncClient(server.address, "root-key") as client:
            await client.put("bats", first.pack())
            assert (await client.put("bats", second.pack(), new_classes=True)).bundle == second.bundle().digest
            assert (await client.pin("bats")).pinned
            assert (await client.roll_back("bats")).bundle == first.bundle().digest
            await client.remove("bats", force=True)
            with pytest.raises(ServiceError, match="unknown task 'bats'"):
                await client.task("bats")

    asyncio.run(change())


def test_without_a_key_nothing_is_changed(server: Server) -> None:
    with Client(server.address) as client, pytest.raises(ServiceError, match="admin keys"):
        client.remove("birds")


@pytest.mark.parametrize(
    ("tasks", "code", "shown"),
    [
        (["birds", "cracks"], 0, [": birds: class-0 0.8", ": cracks: class-1 0.8"]),
        (["birds", "dogs"], 2, [": birds: class-0 0.8", ": dogs: no answer (404): unknown task 'dogs'"]),
    ],
)
def test_the_command_asks_from_any_folder(
    server: Server, maker: TaskMaker, tmp_path: Path, tasks: list[str], code: int, shown: list[str]
) -> None:
    (tmp_path / "image.png").write_bytes(maker.images[0])
    named = [argument for task in tasks for argument in ("--task", task)]
    command = [sys.executable, "-m", "serving.ask", "image.png", *named, "--address", server.address]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    for line, text in zip(done.stdout.splitlines(), shown, strict=True):
        assert line.startswith(f"image.png{text}")
    assert "Traceback" not in done.stderr


def test_features_of_images_come_in_their_order(server: Server, maker: TaskMaker) -> None:
    with Client(server.address) as client:
        alone = client.embed(maker.images[2], "birds")
        found = list(client.embed_many([maker.images[2], b"no image", maker.images[3]], "birds", batch=2))
        plain = client.embed(maker.images[2], normalise=True)
        with pytest.raises(ServiceError, match="unknown task 'dogs'"):
            client.embed(maker.images[2], "dogs")
    first, second, third = found
    assert isinstance(first, Embedding)
    assert isinstance(third, Embedding)
    assert first.embedding == pytest.approx(alone.embedding, abs=1e-4)
    assert first.embedding != pytest.approx(third.embedding, abs=1e-4)
    assert isinstance(second, Failure)
    assert second.status == 415
    assert sum(value**2 for value in plain.embedding) == pytest.approx(1)


def test_a_client_that_awaits_gets_the_same_features(server: Server, maker: TaskMaker) -> None:
    async def ask() -> Embedding:
        async with AsyncClient(server.address) as client:
            return await client.embed(maker.images[2], "birds")

    with Client(server.address) as client:
        wanted = client.embed(maker.images[2], "birds")
    assert asyncio.run(ask()).embedding == pytest.approx(wanted.embedding, abs=1e-5)
