"""Checks before anything starts: mistakes that would otherwise show minutes later, or as a traceback.

In: the settings and the path of the ready file. Out: the settings, with fewer connections where the limit of open files
is low, or a `SettingsError` of one line. Raises the soft limit of open files as far as the hard limit allows. Never
changes a file that is there.
"""

import logging
import os
import resource
import time
from pathlib import Path

from service.access.control import AccessControl
from service.core.settings import Settings, SettingsError
from service.frontends.recording.store import prepare

# A server at rest has some 100 open files: ports, pipes, shared memory, connections to workers. Each connection of a
# client is one more. Below the second number it cannot also hold the connections of a few clients.
OWN_OPEN_FILES = 128
LEAST_OPEN_FILES = 256
MOST_OPEN_FILES = 65_536  # a larger limit is not asked for: some programs close every number up to the limit

_log = logging.getLogger(__name__)


def check(settings: Settings, ready_file: Path | None) -> Settings:
    """Return the settings that fit this machine. Raises `SettingsError` for the first thing that prevents a start."""
    if ready_file is not None:
        _check_folder(ready_file.absolute().parent, f"--ready-file {ready_file}")
        if ready_file.is_dir():
            raise SettingsError(f"--ready-file {ready_file} is a folder; give the path of a file")
    if settings.run_dir is not None and settings.torchserve_inference is None:
        _check_folder(settings.run_dir, "run_dir")
    if settings.recording_dir is not None:
        _check_recording(settings.recording_dir)
    AccessControl.from_settings(settings, time.monotonic)  # before the models load, which takes minutes
    return _with_open_files(settings)


def _check_folder(folder: Path, name: str) -> None:
    if not folder.is_dir():
        raise SettingsError(f"{name}: the folder {folder} does not exist; create it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SettingsError(f"{name}: the folder {folder} cannot be written; change its permissions or give another")


def _check_recording(folder: Path) -> None:
    try:
        prepare(folder)
    except OSError as error:
        raise SettingsError(f"recording_dir: {error}") from error
    _check_folder(folder, "recording_dir")


def _with_open_files(settings: Settings) -> Settings:
    """Leave descriptors for the server's own files and for the HTTP port, whatever number of clients connects."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return settings
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError) as error:  # the system may allow less than the hard limit
            _log.debug("the limit of open files stays %d: %s", soft, error)
    reserved = OWN_OPEN_FILES + settings.max_http_connections
    least = max(LEAST_OPEN_FILES, reserved + 1)
    if soft < least:
        raise SettingsError(
            f"at most {soft} files may be open, and the server needs {least}; raise the limit (ulimit -n)"
        )
    if soft >= reserved + settings.max_connections:
        return settings
    _log.warning(
        "at most %d files may be open, so %d clients can connect instead of %d (max_connections); raise the limit "
        "(ulimit -n) to %d",
        soft,
        soft - reserved,
        settings.max_connections,
        reserved + settings.max_connections,
    )
    return settings.model_copy(update={"max_connections": soft - reserved})
