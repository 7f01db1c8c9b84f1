"""`mobilevision torchserve`: TorchServe as the main process of the container beside the gateway's.

In: the settings that both containers share. Out: nothing. The process becomes the JVM, so that signals, memory and exit
status are TorchServe's own. Files and command line are the same as beside a gateway (`process`). The container runtime
starts TorchServe again when `container_probe` reports a failure. The ports are on loopback, which the containers of a
pod share and nothing else reaches.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from service.core import allocation
from service.core.catalog import Catalog
from service.core.settings import Settings, SettingsError, child_environment
from service.engines.torchserve.command_line import environment, server_command
from service.engines.torchserve.config import KEY_FILE, Ports, config_for
from service.engines.torchserve.run_directory import prepare, write_properties

RUN_FOLDER = "torchserve"

Execute = Callable[[str, list[str], Mapping[str, str]], object]


def become_torchserve(settings: Settings, catalog: Catalog, *, execute: Execute = os.execve) -> None:
    """Write the run directory and replace this process.

    Raises `SettingsError`, `TorchServeFailed`, `ArchiveUntrusted`.
    """
    ports = Ports(
        inference=_loopback_port("torchserve_inference", settings.torchserve_inference),
        management=_loopback_port("torchserve_management", settings.torchserve_management),
    )
    # Threads follow the cores of this container. Only the operator chooses the number of workers, because the gateway
    # in the other container must expect the same number.
    settings = settings.model_copy(update={"workers_per_model": settings.workers_per_model or 1})
    settings = allocation.resolved(settings, allocation.Machine.here(child_environment()), models=len(catalog.cards))
    # The gateway, in the other container, lets TorchServe load further versions from the folder that both see.
    config = replace(config_for(settings, catalog), log_to_console=True, copy_archives=False)
    run = (config.base_directory or Path(tempfile.gettempdir())) / RUN_FOLDER
    shutil.rmtree(run, ignore_errors=True)  # sockets and unpacked archives of the last container
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
            "give both containers the same address, such as 127.0.0.1:7070"
        )
    return int(port)


def _working_directory(settings: Settings, run: Path) -> Path:
    """The folder where TorchServe writes its tokens, shared with the gateway. Removes the tokens of the last JVM."""
    if settings.torchserve_key_file is None:
        return run
    if settings.torchserve_key_file.name != KEY_FILE:
        raise SettingsError(f"torchserve_key_file is {settings.torchserve_key_file}; TorchServe names it {KEY_FILE}")
    settings.torchserve_key_file.unlink(missing_ok=True)
    return settings.torchserve_key_file.parent
