"""Directories of processes that were killed are removed, and no others."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.core import locked_directory

PREFIX = "mobilevision-test-"
KILLED = """
import pathlib, sys
from service.core import locked_directory
path, _ = locked_directory.make(pathlib.Path(sys.argv[1]), sys.argv[2])
(path / "file").touch()
print(path, flush=True)
sys.stdin.read()
"""


def test_the_directory_of_a_killed_process_is_removed_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    own, descriptor = locked_directory.make(tmp_path, PREFIX)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path), PREFIX], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process, process.stdout:
        path = Path(process.stdout.readline().decode().strip())
        locked_directory.remove_stale(tmp_path, PREFIX)
        assert (path / "file").exists()
        process.send_signal(signal.SIGKILL)
    locked_directory.remove_stale(tmp_path, PREFIX)
    assert list(tmp_path.iterdir()) == [own]
    assert own.stat().st_mode & 0o077 == 0
    os.close(descriptor)
    locked_directory.remove_stale(tmp_path, PREFIX)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_ours_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(target)
    (tmp_path / f"{PREFIX}file").touch()
    (tmp_path / "mobilevision-other").mkdir()
    (tmp_path / f"{PREFIX}foreign").mkdir()
    before = set(tmp_path.iterdir())
    monkeypatch.setattr(locked_directory.os, "geteuid", lambda: os.getuid() + 1)
    locked_directory.remove_stale(tmp_path, PREFIX)
    assert set(tmp_path.iterdir()) == before


def test_a_directory_that_is_removed_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, opened = os.open, list[str]()

    def open_after_removal(path: Path, flags: int) -> int:
        opened.append(str(path))
        if len(opened) == 1:
            path.rmdir()
        return real(path, flags)

    monkeypatch.setattr(locked_directory.os, "open", open_after_removal)
    path, descriptor = locked_directory.make(tmp_path, PREFIX)
    os.close(descriptor)
    assert len(opened) == 2
    assert list(tmp_path.iterdir()) == [path]
