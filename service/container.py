"""`mobilevision torchserve`: TorchServe as the main process of the container beside the gateway's.

In: the settings both containers share. Out: nothing; the process becomes the JVM, so that signals, memory and exit
status are TorchServe's own. The files and the command line are those of the embedded one (`service.launch`); starting
it again is the container runtime's work (`service.container_probe` tells it when). Its ports are on loopback, which the
containers of a pod share and nobody else reaches.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from service import allocation
from service.catalog import Catalog
from service.launch import config_for, environment, prepare, server_command, write_properties
from service.settings import Settings, SettingsError, child_environment

RUN_FOLDER = "torchserve"
KEY_FILE = "key_file.json"  # TorchServe's own name for it, in its working directory

Execute = Callable[[str, list[str], Mapping[str, str]], object]


def become_torchserve(settings: Settings, catalog: Catalog, *, execute: Execute = os.execve) -> None:
    """Lay out the run directory and replace this process. Raises `SettingsError`, `EmbeddedError`."""
    ports = (
        _loopback_port("torchserve_inference", settings.torchserve_inference),
        _loopback_port("torchserve_management", settings.torchserve_management),
    )
    # Chosen by what this container has; but workers only by the operator, since the gateway beside it cannot ask.
    settings = settings.model_copy(update={"workers_per_model": settings.workers_per_model or 1})
    settings = allocation.resolved(settings, allocation.Machine.here(child_environment()), models=len(catalog.cards))
    config = replace(config_for(settings, catalog), log_to_console=True)
    run = (config.base_directory or Path(tempfile.gettempdir())) / RUN_FOLDER
    shutil.rmtree(run, ignore_errors=True)  # of the container before this one: its sockets, its unpacked archives
    run.mkdir(mode=0o700, parents=True)
    prepare(run, config)
    write_properties(run, config, ports)
    working_directory = _working_directory(settings, run)
    command = server_command(run, config)
    os.chdir(working_directory)
    execute(command[0], command, environment(run, config))


def _loopback_port(name: str, address: str | None) -> int:
    host, _, port = (address or "").rpartition(":")
    if host not in ("127.0.0.1", "localhost") or not port.isdecimal():
        raise SettingsError(
            f"{name} is {address!r}; TorchServe listens on loopback only, for a gateway in the same network namespace: "
            "give both the same, such as 127.0.0.1:7070"
        )
    return int(port)


def _working_directory(settings: Settings, run: Path) -> Path:
    """Where TorchServe writes its tokens: the folder shared with the gateway, without those of the JVM before."""
    if settings.torchserve_key_file is None:
        return run
    if settings.torchserve_key_file.name != KEY_FILE:
        raise SettingsError(f"torchserve_key_file is {settings.torchserve_key_file}; TorchServe names it {KEY_FILE}")
    settings.torchserve_key_file.unlink(missing_ok=True)
    return settings.torchserve_key_file.parent
