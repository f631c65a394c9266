from pathlib import Path

import pytest

from mosa_deploy.errors import ConfigError, ProviderError, StoreError
from serving.app import decoder_threads
from serving.local_backend import LocalBackend
from serving.settings import Settings, unread_variables, variable


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the service is set."""
    for name in Settings.model_fields:
        monkeypatch.delenv(variable(name), raising=False)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.from_environment() == Settings()
    for name, value in {"ARTIFACTS": "else/where", "THREADS": "3", "FOLDED": "a, b", "RUNTIME": "openvino"}.items():
        monkeypatch.setenv(f"MOSA_{name}", value)
    expected = Settings(artifacts="else/where", threads=3, folded=("a", "b"), runtime="openvino")
    assert Settings.from_environment() == expected


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("THREADS", "two", "valid integer"),
        ("THREADS", "-1", "greater than or equal to 0"),
        ("MAX_BATCH", "-1", "greater than or equal to 0"),
        ("DEADLINE_S", "0", "greater than 0"),
        ("RUNTIME", "tpu", "'onnxruntime-cpu'"),
    ],
)
def test_an_impossible_value_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(f"MOSA_{name}", value)
    with pytest.raises(ConfigError, match=rf"^MOSA_{name}={value}: .*{reason}") as caught:
        Settings.from_environment()
    assert "\n" not in str(caught.value)


def test_origins_are_taken_as_browsers_send_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSA_CORS_ORIGINS", "https://App.example/, http://localhost:5173")
    assert Settings.from_environment().cors_origins == ("https://app.example", "http://localhost:5173")


@pytest.mark.parametrize("origin", ["app.example", "https://app.example/page", "https://*.example", "https://"])
def test_what_no_browser_sends_as_an_origin_is_refused(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    monkeypatch.setenv("MOSA_CORS_ORIGINS", origin)
    with pytest.raises(ConfigError) as caught:
        Settings.from_environment()
    assert str(caught.value).startswith(f"MOSA_CORS_ORIGINS={origin}: '")
    assert str(caught.value).endswith("is no origin: give * or one like https://example.com, without a path")


def test_a_variable_that_nothing_reads_is_named_with_the_nearest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MOSA_ARTIFACTS", "MOSA_ADMIN_KEYS_FILE", "MOSA_ADDRESS", "MOSA_KEY"):
        monkeypatch.setenv(name, "x")
    before = unread_variables()
    for name in ("MOSA_ARTEFACTS", "mosa_threads", "MOSA_XYZZY"):
        monkeypatch.setenv(name, "x")
    assert [line for line in unread_variables() if line not in before] == [
        "MOSA_ARTEFACTS is set, but nothing reads it: did you mean MOSA_ARTIFACTS?",
        "MOSA_XYZZY is set, but nothing reads it",
        "mosa_threads is set, but nothing reads it: did you mean MOSA_THREADS?",
    ]


def test_all_faults_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOSA_THREADS", "x")
    monkeypatch.setenv("MOSA_QUEUE", "y")
    with pytest.raises(ConfigError, match=r"MOSA_THREADS=x: .*; MOSA_QUEUE=y: "):
        Settings.from_environment()


def test_keys_come_from_files_too_and_are_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("second\nthird\n")
    monkeypatch.setenv("MOSA_ADMIN_KEYS", "first")
    monkeypatch.setenv("MOSA_ADMIN_KEYS_FILE", str(tmp_path / "keys"))
    settings = Settings.from_environment()
    assert settings.admin_keys == ("first", "second", "third")
    assert "MOSA_ADMIN_KEYS=3 given" in settings.shown()
    assert "first" not in settings.shown()
    assert all(variable(name) in settings.shown() for name in Settings.model_fields)


def test_a_file_of_keys_that_is_not_there_stops_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOSA_API_KEYS_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"^MOSA_API_KEYS_FILE=.*none: No such file"):
        Settings.from_environment()


@pytest.mark.parametrize("content", ["", "\n \n", " , \n"])
def test_a_file_without_keys_stops_the_start_and_does_not_open_the_service(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str
) -> None:
    (tmp_path / "keys").write_text(content)
    monkeypatch.setenv("MOSA_API_KEYS_FILE", str(tmp_path / "keys"))
    with pytest.raises(ConfigError, match=r"^MOSA_API_KEYS_FILE=.*keys: the file holds no key: write one per line"):
        Settings.from_environment()


def test_a_file_of_keys_may_be_written_on_windows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes("\ufeffone\r\ntwo\r\n".encode())
    monkeypatch.setenv("MOSA_API_KEYS_FILE", str(tmp_path / "keys"))
    assert Settings.from_environment().api_keys == ("one", "two")


def test_a_runtime_that_is_not_here_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="MOSA_RUNTIME=tensorrt"):
        LocalBackend(Settings(artifacts=str(tmp_path), runtime="tensorrt"))


def test_an_empty_store_names_the_command_that_fills_it_unless_tasks_may_be_added(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    with pytest.raises(StoreError) as caught:
        LocalBackend(Settings(artifacts=str(tmp_path)))
    assert str(caught.value) == f"no task in {tmp_path}/tasks: write one with `mosa export --out {tmp_path}`"
    LocalBackend(Settings(artifacts=str(tmp_path), admin_keys=("a",))).stop()


@pytest.mark.parametrize(
    ("decoders", "workers", "cores", "threads"), [(0, 1, 2, 2), (0, 1, 16, 8), (0, 4, 16, 2), (3, 1, 16, 3)]
)
def test_without_a_setting_every_two_cores_have_a_thread_that_decodes(
    decoders: int, workers: int, cores: int, threads: int
) -> None:
    assert decoder_threads(Settings(decoders=decoders, workers=workers), cores) == threads
