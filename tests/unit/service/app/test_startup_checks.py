"""Mistakes are reported before anything starts, in one line."""

import logging
import resource
from pathlib import Path

import pytest
from fakes import local_settings

from service.app import startup_checks
from service.app.server import serve
from service.app.startup_checks import LEAST_OPEN_FILES, OWN_OPEN_FILES, check
from service.core.catalog import Catalog
from service.core.settings import SettingsError


def limit_open_files(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> list[tuple[int, int]]:
    new: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: new.append(limits))
    return new


def test_a_ready_file_needs_a_folder_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(local_settings(), tmp_path / "ready.json")
    for path, message in ((tmp_path / "none" / "ready.json", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(SettingsError, match=message) as raised:
            check(local_settings(), path)
        assert "\n" not in str(raised.value)
    monkeypatch.setattr(startup_checks.os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(SettingsError, match=r"--ready-file .* cannot be written"):
        check(local_settings(), tmp_path / "ready.json")


def test_a_server_that_nobody_could_call_is_told_before_the_models_load(tmp_path: Path) -> None:
    for overrides, message in (
        ({"grpc_host": "0.0.0.0"}, "nobody could call"),
        ({"callers_file": tmp_path / "none.toml"}, r"none\.toml cannot be read"),
    ):
        with pytest.raises(SettingsError, match=rf"^[^\n]*{message}[^\n]*$"):
            check(local_settings(**overrides), None)


async def test_a_missing_run_directory_is_found_before_anything_starts(tmp_path: Path) -> None:
    settings = local_settings(run_dir=tmp_path / "none")
    with pytest.raises(SettingsError, match=r"run_dir: the folder .*none does not exist; create it"):
        await serve(settings, Catalog([]))


def test_the_limit_of_open_files_is_raised_to_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    new = limit_open_files(monkeypatch, 64, 4096)
    check(local_settings(), None)
    assert new == [(4096, 4096)]


def test_too_few_open_files_are_refused_and_few_leave_fewer_connections(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limit_open_files(monkeypatch, 64, 64)
    with pytest.raises(SettingsError, match=f"at most 64 files may be open, and the server needs {LEAST_OPEN_FILES}"):
        check(local_settings(), None)
    limit_open_files(monkeypatch, LEAST_OPEN_FILES, LEAST_OPEN_FILES)
    with caplog.at_level(logging.WARNING):
        settings = check(local_settings(), None)
    assert settings.max_connections == LEAST_OPEN_FILES - OWN_OPEN_FILES - settings.max_http_connections
    assert len(caplog.records) == 1
    assert "so 96 clients can connect instead of 1024" in caplog.text
    assert "raise the limit (ulimit -n) to 1184" in caplog.text
    limit_open_files(monkeypatch, 1184, 1184)
    assert check(local_settings(), None).max_connections == 1024


def test_recorded_calls_need_a_folder_that_only_its_owner_reads(tmp_path: Path) -> None:
    folder = tmp_path / "calls"
    check(local_settings(recording_dir=folder), None)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    with pytest.raises(SettingsError, match=r"recording_dir: others may read the folder .*chmod 700"):
        check(local_settings(recording_dir=folder), None)
    with pytest.raises(SettingsError, match="recording_dir"):
        check(local_settings(recording_dir=Path(__file__)), None)
