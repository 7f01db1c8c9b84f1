"""What the calling commands print about one result: a table for people, or one line of JSON for programs.

In: a result and the name of its picture. Out: text on a console, or a JSON object. Never calls a server.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mobilevision.drawing import Reply
from mobilevision.results import Result
from service.pb.mobilevision.v1 import vision_pb2

STAGES = ("decode", "queue", "transport", "inference", "results")


def json_line(name: str, result: Result[Any], annotated: Path | None) -> dict[str, Any]:
    """The reply and its timings as a JSON object.

    Masks in PNG are base64, as in protobuf's JSON. COCO run lengths are text, as pycocotools writes them.
    """
    reply = MessageToDict(result.reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    if isinstance(result.reply, vision_pb2.SegmentResponse):
        for plain, found in zip(reply["classes"], result.reply.classes, strict=True):
            plain["rle_counts"] = found.rle_counts.decode("ascii")
    line = {
        "image": name,
        **reply,
        "timings_ms": dict(result.stage_ms),
        "elapsed_ms": round(result.elapsed_ms, 3),
        "batch_size": result.batch_size,
        "request_id": result.request_id,
    }
    return line if annotated is None else line | {"annotated": str(annotated)}


def show(console: Console, name: str, result: Result[Any], annotated: Path | None) -> None:
    """Print the answer as a table: the model and its weights above, the times and what computed it below."""
    reply = result.reply
    console.print()
    size = f"{reply.picture.width} x {reply.picture.height} {reply.picture.format}"
    console.print(f"[bold]{escape(name)}[/] [dim]{size}, {escape(reply.model.name)} {escape(reply.model.version)}[/]")
    console.print(_weights(reply.model.weights))
    console.print(_TABLES[type(reply)](reply))
    stages = " · ".join(f"{stage} {result.stage_ms[stage]:.1f}" for stage in STAGES if stage in result.stage_ms)
    batch = "" if result.batch_size is None else f" · batch of {result.batch_size}"
    used = reply.model
    ran = "".join(f" · {escape(value)}" for value in (used.engine, used.dtype, used.device) if value)
    console.print(f"[dim]{stages or 'no stage times'} ms · call {result.elapsed_ms:.1f} ms{batch}{ran}[/]")
    if annotated is not None:
        console.print(f"[dim]annotated picture: {escape(str(annotated))}[/]")


def _weights(state: vision_pb2.WeightsState.ValueType) -> str:
    if state == vision_pb2.WEIGHTS_STATE_RANDOM:
        return "[bold white on red] weights: random [/] [red]never trained: this answer means nothing[/]"
    if state == vision_pb2.WEIGHTS_STATE_DEMO:
        return "[yellow]weights: demo, trained on drawn shapes: answers on photographs are wrong[/]"
    return f"[dim]weights: {vision_pb2.WeightsState.Name(state).removeprefix('WEIGHTS_STATE_').lower()}[/]"


def _labels(reply: vision_pb2.ClassifyResponse) -> Table:
    table = _table("label", "id", "score")
    for label in reply.labels:
        table.add_row(escape(label.name), str(label.id), f"{label.score:.4f}")
    return table


def _boxes(reply: vision_pb2.DetectResponse) -> Table:
    table = _table("label", "score", "x_min", "y_min", "x_max", "y_max")
    for found in reply.detections:
        box = found.box
        edges = (f"{edge:.0f}" for edge in (box.x_min, box.y_min, box.x_max, box.y_max))
        table.add_row(escape(found.label.name), f"{found.label.score:.3f}", *edges)
    if not reply.detections:
        table.add_row("[dim]nothing above the threshold[/]")
    return table


def _classes(reply: vision_pb2.SegmentResponse) -> Table:
    table = _table("class", "id", "area")
    for region in reply.classes:
        table.add_row(escape(region.name), str(region.id), f"{region.area_fraction:.1%}")
    return table


_TABLES: dict[type[Reply], Callable[[Any], Table]] = {
    vision_pb2.ClassifyResponse: _labels,
    vision_pb2.DetectResponse: _boxes,
    vision_pb2.SegmentResponse: _classes,
}


def _table(name: str, *numbers: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(name)
    for column in numbers:
        table.add_column(column, justify="right")
    return table
