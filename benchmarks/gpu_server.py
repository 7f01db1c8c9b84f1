"""Measures the whole server on a machine without a network, for `benchmarks.gpu`.

In: an archive and folders of wheels. Out: parts of a `serving.json`, and errors. The server gets a virtual environment
with the wheels and the torch of the machine. Everything runs in separate processes.
"""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import ROOT

CLIENTS = (1, 32, 256)
TURN_SECONDS = 3
PARTS = ("participants", "limit_turns", "turns", "ratio_to_limit", "added_ms")
_OURS = "mobilevision"
_GRACE_SECONDS = 20.0  # for the benchmark to end its servers and to write its results


def requirements() -> list[str]:
    """Requirements of the server and TorchServe, from pyproject.toml, without torch: the machine has one with CUDA."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    # The extra `models` names `mobilevision[serve]`, which is no wheel to carry. Its requirements are listed instead.
    wanted = [*project["dependencies"], *extras["serve"], *extras["models"]]
    return [one for one in wanted if re.split(r"[^\w-]", one)[0] not in {"torch", project["name"]}]


def make_environment(folder: Path, wheels: Sequence[Path], seconds: float) -> Path:
    """Make a virtual environment with the wheels and the packages of the machine. Raises `RuntimeError`.

    Returns the path of its Python. `seconds` limits each command.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        _run([sys.executable, "-m", "venv", "--system-site-packages", str(folder)], seconds)
    # If this Python is a virtual environment itself, the new one would have only the packages of its base.
    site_packages = next(folder.glob("lib/python3*/site-packages"))
    visible = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(Path(torch.__file__).parents[1])]
    site_packages.joinpath("machine.pth").write_text("\n".join(dict.fromkeys(visible)) + "\n")
    found = [word for one in wheels for word in ("--find-links", str(one.resolve()))]
    _run([str(python), "-m", "pip", "install", "--quiet", "--no-index", *found, *requirements()], seconds)
    return python


def make_catalog(archive: Path, folder: Path) -> Path:
    """Copy the archive to `folder` with its card beside it, as the server expects. Returns the path of the copy."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as packed:
        (folder / f"{archive.stem}.card.json").write_bytes(packed.read("card.json"))
    return Path(shutil.copyfile(archive, folder / archive.name))


def serve(
    python: Path, archive: Path, out: Path, *, graphs: bool | None, gpu: bool, seconds: float
) -> tuple[dict[str, Any], list[str]]:
    """Run `benchmarks.serving` with our server only. Returns parts of its file, and the errors of the run.

    `graphs`: with or without CUDA graphs; None leaves the choice to the server.
    """
    command = [str(python), "-m", "benchmarks.serving", "--peers", "--quick", "--archives", str(archive.parent)]
    command += ["--models", archive.stem, "--seconds", str(TURN_SECONDS), "--out", str(out)]
    command += ["--clients", *map(str, CLIENTS)]
    command += ["--gpu"] if gpu else []
    # There are more clients than places in the default queue. Refused clients would repeat their calls at once.
    command += ["--setting", f"MAX_QUEUE={2 * max(CLIENTS)}"]
    command += [] if graphs is None else [f"CUDA_GRAPHS={str(graphs).lower()}"]
    path, wrong = out / "serving.json", []
    path.unlink(missing_ok=True)
    try:
        _run(command, seconds)
    except RuntimeError as error:
        wrong.append(str(error))
    if not path.exists():
        return {}, [*wrong, "the benchmark wrote no serving.json"]
    served: dict[str, Any] = json.loads(path.read_bytes())
    return {key: served[key] for key in PARTS}, wrong + failures(served)


def failures(served: dict[str, Any]) -> list[str]:
    """Reasons why a `serving.json` is no valid measurement of our server. Empty if it is valid."""
    wrong = [f"{one['name']}: {one['error']}" for one in served["participants"] if one["error"]]
    ours = [turn for turn in served["turns"] if turn["system"] == _OURS]
    if not ours:
        wrong.append("the server was not measured: there is no turn of it")
    wrong += [f"{turn['failed']} calls failed at {turn['clients']} clients" for turn in ours if turn["failed"]]
    if not served["head"]["complete"]:
        wrong.append("the benchmark was stopped early")
    return wrong


def _run(command: list[str], seconds: float) -> None:
    """Run a command for at most `seconds`. Raises `RuntimeError` with the end of its output."""
    what = " ".join(command[:4])
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.terminate()  # on SIGTERM the benchmark ends its servers and writes its results
            try:
                output, _ = process.communicate(timeout=_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                output = ""
            raise RuntimeError(f"{what} ... took over {seconds:.0f} s: {output.strip()[-600:]}") from None
    if process.returncode != 0:
        raise RuntimeError(f"{what} ... ended with {process.returncode}: {output.strip()[-600:]}")
