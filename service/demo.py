"""`mobilevision demo`: the whole product once, as a user would run it, each part in a process of its own.

Builds missing archives, starts `mobilevision serve` on free ports, sends pictures through the three calls, writes
annotated pictures and `report.json`, and stops the server again, also on Ctrl-C.
"""

import contextlib
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table

from service.catalog import CARD_SUFFIX
from service.client import CallFailed, Result, VisionClient
from service.client.draw import annotate
from service.instance import InstanceFailed, serving

MODELS = ("demo_classify", "demo_detect", "demo_segment")
STAGES = ("decode", "queue", "transport", "inference", "results")
PACKAGES = ("mobilevision", "torch", "torchserve", "grpcio", "pillow", "numpy")
DISTINCT_LABELS = 3  # shown per picture


class DemoFailed(Exception):
    """The demo did not reach its end; the message says at which step and what to do."""


def run_demo(*, out: Path, pictures: Path, archives: Path, console: Console) -> None:
    """Run it. Raises `DemoFailed`."""
    files = sorted(pictures.glob("*.jpg"))
    if not files:
        raise DemoFailed(f"no .jpg pictures in {pictures}; run it in a clone of the project, or name --pictures")
    out.mkdir(parents=True, exist_ok=True)
    _build(archives, console)
    try:
        with contextlib.ExitStack() as stack:
            with console.status("starting TorchServe and the gateway"):
                address = stack.enter_context(serving(MODELS, archives=archives, log=out / "server.log"))
            console.print(f"serving on {address.grpc} after {address.startup_seconds:.1f} s")
            calls = list(_calls(address.grpc, files, out))
    except InstanceFailed as error:
        raise DemoFailed(str(error)) from error
    for table in _tables(calls):
        console.print(table)
    console.print(
        "[yellow]weights: demo[/]: small models trained on drawn shapes; right about the shapes_*.jpg, "
        "and nothing to go by on photographs, for which `mobilevision models pull` fetches official weights"
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
    # In a process of its own: the gateway never imports torch.
    command = [sys.executable, "-m", "service", "models", "build", *missing, "--out", str(archives)]
    if subprocess.run(command, check=False).returncode != 0:
        raise DemoFailed(f"building failed; see above, or run: {' '.join(command)}")


def _calls(server: str, files: list[Path], out: Path) -> Iterator[dict[str, Any]]:
    with VisionClient(server) as client:
        for task in ("classify", "detect", "segment"):
            for file in files:
                try:
                    result: Result[Any] = getattr(client, task)(file)
                except CallFailed as error:
                    raise DemoFailed(f"{task} of {file.name} failed: {error}") from error
                picture = out / f"{file.stem}.{task}.jpg"
                annotate(file.read_bytes(), result.reply).convert("RGB").save(picture, quality=90)
                answer = MessageToDict(result.reply, preserving_proto_field_name=True)
                answer.pop("mask_png", None)  # drawn in the picture
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
        answers.add_row(call["picture"], call["task"], f"{sum(call['milliseconds'].values()):.0f}", _summary(call))
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


def _summary(call: dict[str, Any]) -> str:
    result = call["result"]
    if call["task"] == "classify":
        return ", ".join(f"{label['name']} {label['score']:.3f}" for label in result["labels"][:DISTINCT_LABELS])
    if call["task"] == "detect":
        found = [f"{d['label']['name']} {d['label']['score']:.2f}" for d in result.get("detections", [])]
        return f"{len(found)} found: {', '.join(found[:DISTINCT_LABELS])}" if found else "nothing above the threshold"
    classes = result.get("classes", [])
    return ", ".join(f"{c['name']} {c['area_fraction']:.0%}" for c in classes[:DISTINCT_LABELS])


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
