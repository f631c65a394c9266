"""Clusters that cannot be used: each is told in one line, and within a minute."""

import json
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import pytest

from mosa_deploy.errors import ConfigError, ProviderError
from mosa_deploy.utils.ray_cluster import SEEN, Needs, connected, prepare
from tests.support.ray_cluster import REASON, started


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster."""
    with started() as address:
        yield address


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("here", "give HOST:PORT of the cluster's head"),
        ("ray://here:10001", "give HOST:PORT of the cluster's head"),
        ("http://here:8265", "give HOST:PORT of the cluster's head"),
        ("127.0.0.1:1", r"nothing answers there \(Connection refused\): start a cluster with `ray start --head`"),
    ],
)
def test_an_address_without_a_cluster_is_named(address: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--ray {address}: {said}"), connected(address):
        pass


@pytest.mark.slow
def test_a_variable_that_names_a_dead_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason=REASON)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    said = r"^--ray auto \(RAY_ADDRESS=127\.0\.0\.1:1\): nothing answers there \(Connection refused\)"
    with pytest.raises(ConfigError, match=said), connected("auto"):
        pass


@pytest.mark.skipif(find_spec("ray") is not None, reason="the extra `ray` is installed")
def test_ray_that_is_not_installed_is_named_with_its_extra() -> None:
    with pytest.raises(ProviderError, match=r"^ray is not .*: pip install 'mosa-deploy\[ray\]'$"), connected("auto"):
        pass


def test_a_machine_says_all_that_it_lacks(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    needs = Needs.of([own, other], [tmp_path / "images", tmp_path / "images", own], ["json", "no_such_package"])
    (other / SEEN).write_text("of another folder of this name")
    assert needs._replace(version="0.0.1").lacking() == [
        f"has mosa-deploy {needs.version}, not 0.0.1: install the same",
        "has no package no_such_package",
        f"does not see {other}: name a folder on storage that all nodes share",
        f"does not see {tmp_path / 'images'}",
    ]


@pytest.mark.slow
def test_every_node_is_asked_for_what_it_lacks(cluster: str, tmp_path: Path) -> None:
    with connected(cluster) as ray:
        prepare(ray, Needs.of([tmp_path], [], ["json"]))
        said = rf"^--ray: the node \S+ has no package no_such_package; the node \S+ does not see {tmp_path / 'a'}$"
        with pytest.raises(ConfigError, match=said):
            prepare(ray, Needs.of([tmp_path], [tmp_path / "a"], ["no_such_package"]))


@pytest.mark.slow
def test_a_cluster_of_another_python_is_named(cluster: str) -> None:
    import ray._raylet

    client = ray._raylet.GcsClient(address=cluster)
    key = (b"CLUSTER_METADATA", b"cluster")
    kept = client.internal_kv_get(*key)
    try:
        other = json.dumps(json.loads(kept) | {"python_version": "3.9.2"}).encode()
        client.internal_kv_put(key[0], other, True, key[1])
        with pytest.raises(ConfigError) as caught, connected(cluster):
            pass
    finally:
        client.internal_kv_put(key[0], kept, True, key[1])
    said = str(caught.value)
    assert "\n" not in said
    assert "Python: 3.9.2; this process" in said
    assert said.endswith(": give all nodes and this machine the same Python and Ray")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", r"what answers there is no cluster's head: name the port that"),
        (b"", r"nothing answers there \(timed out\)"),
    ],
)
def test_what_answers_but_is_no_cluster_is_named(answer: bytes, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mosa_deploy.utils.ray_cluster.ANSWER_SECONDS", 0.5)

    def respond() -> None:
        connection, _ = other.accept()
        opened.append(connection)
        connection.sendall(answer)

    opened: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as other:
        thread = Thread(target=respond)
        thread.start()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"^--ray {address}: {said}"), connected(address):
            pass
        thread.join()
        opened[0].close()
