from pathlib import Path

import pytest

from service.core.settings import Settings, SettingsError, as_environment, child_environment, load


def test_the_command_line_beats_the_environment_beats_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("max_batch = 2\nmax_queue = 3\nworker_threads = 4\n")
    monkeypatch.setenv("MOBILEVISION_MAX_QUEUE", "30")
    monkeypatch.setenv("MOBILEVISION_WORKER_THREADS", "40")
    settings = load(file, worker_threads=41, dtype=None)
    assert (settings.max_batch, settings.max_queue, settings.worker_threads) == (2, 30, 41)
    assert settings.dtype == "auto"


def test_an_unknown_name_in_the_environment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILEVISION_MAX_BATCHES", "2")
    with pytest.raises(SettingsError, match="MOBILEVISION_MAX_BATCHES"):
        load()


def test_the_clients_variable_may_be_set_in_the_shell_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILEVISION_API_KEY", "mv_key")
    assert "mv_key" not in str(as_environment(load())) + str(child_environment())


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("max_batch = 0", "max_batch"),
        ("max_batch = 'x'", "max_batch"),
        ("max_call_pictures = 0", "max_call_pictures"),
        ("max_call_pictures_megabytes = 1024", "max_call_pictures_megabytes"),
        ("max_streams = 0", "max_streams"),
        ("max_stream_pictures = 0", "max_stream_pictures"),
        ("max_stream_seconds = 0", "max_stream_seconds"),
        ("stream_idle_seconds = 0", "stream_idle_seconds"),
        ("max_decode_seconds = 0", "max_decode_seconds"),
        ("max_connections = 0", "max_connections"),
        ("max_btch = 1", "max_btch"),
        ("max_batch", "not TOML"),
        ("recording_share = 0", "recording_share"),
        ("recording_hours = 0", "recording_hours"),
        ("recording_content = 'faces'", "recording_content"),
    ],
)
def test_the_error_for_an_invalid_file_names_the_setting(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=named):
        load(file)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        load(tmp_path / "none.toml")


def test_one_address_of_an_external_torchserve_without_the_other_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="go together"):
        load(torchserve_inference="localhost:7070")


def test_children_do_not_inherit_our_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILEVISION_MAX_BATCH", "2")
    monkeypatch.setenv("HOME_OF_TEST", "here")
    environment = child_environment(EXTRA="1")
    assert "MOBILEVISION_MAX_BATCH" not in environment
    assert (environment["HOME_OF_TEST"], environment["EXTRA"]) == ("here", "1")


def test_settings_travel_through_the_environment_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        models=("a", "b"),
        archives=tmp_path / "with space",
        grpc_port=1234,
        drain_delay_seconds=0.25,
        dtype="bfloat16",
        torchserve_inference="localhost:1",
        torchserve_management="localhost:2",
        torchserve_key_file=tmp_path / "key_file.json",
    )
    environment = as_environment(settings)
    assert environment["MOBILEVISION_MODELS"] == '["a", "b"]'
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load().model_dump() == settings.model_dump()
