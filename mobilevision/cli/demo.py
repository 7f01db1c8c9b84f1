"""`mobilevision demo`: everything once, as a user would run it, each part in a process of its own.

The demo builds missing archives, starts `mobilevision serve` on free ports, sends each picture through the three calls,
writes annotated pictures and `report.json`, and stops the server. Ctrl-C stops the server too.
"""

import contextlib
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table

from mobilevision.cli.output import STAGES
from mobilevision.client import CallFailed, VisionClient
from mobilevision.drawing import annotate
from mobilevision.results import Result
from mobilevision.tasks import Task
from service.app.local_server import LocalServerFailed, serving
from service.core.catalog import CARD_SUFFIX

MODELS = ("demo_classify", "demo_detect", "demo_segment")
PACKAGES = ("mobilevision", "torch", "torchserve", "grpcio", "pillow", "numpy")
SHOWN_LABELS = 3  # per picture


class DemoFailed(Exception):
    """The demo did not finish. The message names the step that failed and what to do."""


def run_demo(*, out: Path, pictures: Path, archives: Path, console: Console) -> None:
    """Run the demo for every .jpg in `pictures`. Raises `DemoFailed`."""
    files = sorted(pictures.glob("*.jpg"))
    if not files:
        raise DemoFailed(
            f"no .jpg pictures in {pictures}; run the demo in a clone of the project, or name a folder with --pictures"
        )
    out.mkdir(parents=True, exist_ok=True)
    _build(archives, console)
    try:
        with contextlib.ExitStack() as stack:
            with console.status("starting TorchServe and the gateway"):
                address = stack.enter_context(serving(MODELS, archives=archives, log=out / "server.log"))
            console.print(f"serving on {address.grpc} after {address.startup_seconds:.1f} s")
            calls = list(_calls(address.grpc, files, out))
    except LocalServerFailed as error:
        raise DemoFailed(str(error)) from error
    for table in _tables(calls):
        console.print(table)
    console.print(
        "[yellow]weights: demo[/]: small models trained on drawn shapes. They are right about shapes_*.jpg and wrong "
        "about photographs; `mobilevision models pull` fetches official weights for those"
    )
    report = {
        "startup_seconds": address.startup_seconds,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "calls": calls,
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"annotated pictures and report.json are in [bold]{out}[/]")


def _build(archives: Path, console: Console) -> None:
    missing = [name for name in MODELS if not (archives / f"{name}{CARD_SUFFIX}").is_file()]
    if not missing:
        return
    console.print(f"building {len(missing)} archives into {archives}")
    # The build imports torch, so it runs in a process of its own.
    command = [sys.executable, "-m", "mobilevision", "models", "build", *missing, "--out", str(archives)]
    if subprocess.run(command, check=False).returncode != 0:
        raise DemoFailed(f"building failed; see above, or run: {' '.join(command)}")


def _calls(server: str, files: list[Path], out: Path) -> Iterator[dict[str, Any]]:
    with VisionClient(server) as client:
        calls: dict[Task, Callable[[Path], Result[Any]]] = {
            Task.CLASSIFY: client.classify,
            Task.DETECT: client.detect,
            Task.SEGMENT: client.segment,
        }
        for task, call in calls.items():
            for file in files:
                try:
                    result = call(file)
                except CallFailed as error:
                    raise DemoFailed(f"{task} of {file.name} failed: {error}") from error
                picture = out / f"{file.stem}.{task}.jpg"
                annotate(file.read_bytes(), result.reply).convert("RGB").save(picture, quality=90)
                answer = MessageToDict(result.reply, preserving_proto_field_name=True)
                answer.pop("mask_png", None)  # the annotated picture shows it
                yield {
                    "task": task,
                    "picture": file.name,
                    "annotated": picture.name,
                    "model": result.reply.model.name,
                    "weights": answer["model"]["weights"],
                    "milliseconds": result.stage_ms,
                    "batch_size": result.batch_size,
                    "result": answer,
                }


def _tables(calls: list[dict[str, Any]]) -> Iterator[Table]:
    answers = Table(title="answers")
    for column in ("picture", "call", "ms", "answer"):
        answers.add_column(column, justify="right" if column == "ms" else "left")
    for call in calls:
        answers.add_row(
            call["picture"],
            call["task"],
            f"{sum(call['milliseconds'].values()):.0f}",
            _SUMMARIES[call["task"]](call["result"]),
        )
    yield answers
    stages = Table(title="milliseconds per stage, median")
    for column in ("model", *STAGES):
        stages.add_column(column, justify="right" if column in STAGES else "left", no_wrap=True)
    for model in dict.fromkeys(call["model"] for call in calls):
        mine = [call for call in calls if call["model"] == model]
        stages.add_row(
            model,
            *(f"{statistics.median(call['milliseconds'][stage] for call in mine):.1f}" for stage in STAGES),
        )
    yield stages


def _labels(result: dict[str, Any]) -> str:
    return ", ".join(f"{label['name']} {label['score']:.3f}" for label in result["labels"][:SHOWN_LABELS])


def _boxes(result: dict[str, Any]) -> str:
    found = [f"{d['label']['name']} {d['label']['score']:.2f}" for d in result.get("detections", [])]
    return f"{len(found)} found: {', '.join(found[:SHOWN_LABELS])}" if found else "nothing above the threshold"


def _classes(result: dict[str, Any]) -> str:
    return ", ".join(f"{c['name']} {c['area_fraction']:.0%}" for c in result.get("classes", [])[:SHOWN_LABELS])


_SUMMARIES = {Task.CLASSIFY: _labels, Task.DETECT: _boxes, Task.SEGMENT: _classes}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
