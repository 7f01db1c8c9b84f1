"""The commands `classify`, `detect` and `segment`: picture files in, tables, JSON lines and annotated pictures out.

Each asks a running server, one picture after the other, and goes on after a failure; the exit code is 1 if any failed.
Results go to stdout, failures to stderr, one line each that says what to do.
"""

import json
import sys
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.client import DEFAULT_TARGET, DEFAULT_TIMEOUT_SECONDS, CallFailed, Result, VisionClient
from service.client.draw import Reply, annotate
from service.pb.mobilevision.v1 import vision_pb2

STDIN = "-"
STAGES = ("decode", "queue", "transport", "inference", "results")

Call = Callable[[VisionClient, bytes], Result[Any]]

Images = Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Picture files; - reads one from stdin.")]
Model = Annotated[str, typer.Option("--model", metavar="NAME", help="Model to ask [the server's default].")]
Server = Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="Where the server listens.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per picture and line.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="PATH", help="Write the annotated picture there; a folder for several pictures."),
]
Timeout = Annotated[float, typer.Option("--timeout", min=0.001, help="Deadline of each call, seconds.")]


class Priority(StrEnum):
    """Priorities by the names the command line uses."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class Encoding(StrEnum):
    """Mask encodings by the names the command line uses."""

    PNG = "png"
    RLE = "rle"


_ENCODINGS = {
    Encoding.PNG: vision_pb2.MASK_ENCODING_PNG,
    Encoding.RLE: vision_pb2.MASK_ENCODING_COCO_RLE,
}

_PRIORITIES = {
    Priority.INTERACTIVE: vision_pb2.PRIORITY_INTERACTIVE,
    Priority.BATCH: vision_pb2.PRIORITY_BATCH,
}

AsPriority = Annotated[
    Priority, typer.Option("--priority", help="batch: bulk work, lets interactive calls of others go first.")
]


def classify(
    images: Images,
    model: Model = "",
    server: Server = DEFAULT_TARGET,
    as_json: AsJson = False,
    out: Out = None,
    timeout: Timeout = DEFAULT_TIMEOUT_SECONDS,
    priority: AsPriority = Priority.INTERACTIVE,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, max=100, help="Labels to show [5].")] = None,
) -> None:
    """Say what pictures show: the best labels with probabilities."""

    def call(client: VisionClient, image: bytes) -> Result[vision_pb2.ClassifyResponse]:
        return client.classify(image, model=model, top_k=top_k, priority=_PRIORITIES[priority])

    _run(call, images, server=server, as_json=as_json, out=out, timeout_seconds=timeout)


def detect(
    images: Images,
    model: Model = "",
    server: Server = DEFAULT_TARGET,
    as_json: AsJson = False,
    out: Out = None,
    timeout: Timeout = DEFAULT_TIMEOUT_SECONDS,
    priority: AsPriority = Priority.INTERACTIVE,
    threshold: Annotated[
        float | None, typer.Option("--threshold", min=0.0, max=1.0, help="Leave lower scores out [0.3].")
    ] = None,
    most: Annotated[int | None, typer.Option("--max", min=1, max=200, help="At most so many boxes [100].")] = None,
) -> None:
    """Find objects in pictures: boxes in pixels, with labels and scores."""

    def call(client: VisionClient, image: bytes) -> Result[vision_pb2.DetectResponse]:
        return client.detect(
            image, model=model, score_threshold=threshold, max_detections=most, priority=_PRIORITIES[priority]
        )

    _run(call, images, server=server, as_json=as_json, out=out, timeout_seconds=timeout)


def segment(
    images: Images,
    model: Model = "",
    server: Server = DEFAULT_TARGET,
    as_json: AsJson = False,
    out: Out = None,
    timeout: Timeout = DEFAULT_TIMEOUT_SECONDS,
    priority: AsPriority = Priority.INTERACTIVE,
    encoding: Annotated[
        Encoding, typer.Option("--encoding", help="Mask encoding in --json; only png can be drawn by --out.")
    ] = Encoding.PNG,
) -> None:
    """Label every pixel of pictures: the classes found, and with --out or --json the mask."""
    if out is not None and encoding is not Encoding.PNG:
        raise typer.BadParameter("only --encoding png can be drawn by --out")

    def call(client: VisionClient, image: bytes) -> Result[vision_pb2.SegmentResponse]:
        return client.segment(image, model=model, mask_encoding=_ENCODINGS[encoding], priority=_PRIORITIES[priority])

    _run(call, images, server=server, as_json=as_json, out=out, timeout_seconds=timeout)


def register(app: typer.Typer) -> None:
    """Add the commands to the `mobilevision` command."""
    for command in (classify, detect, segment):
        app.command()(command)


def _run(
    call: Call, images: list[str], *, server: str, as_json: bool, out: Path | None, timeout_seconds: float
) -> None:
    """Ask for every picture in turn; raises `typer.Exit(1)` if one failed."""
    if images.count(STDIN) > 1:
        raise typer.BadParameter("stdin (-) can be read once only")
    to_folder = out is not None and (out.is_dir() or len(images) > 1)
    if out is not None and to_folder:
        if out.exists() and not out.is_dir():
            raise typer.BadParameter(f"--out {out} is a file; several pictures need a folder")
        out.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    failed = False
    written: set[Path] = set()
    with VisionClient(server, timeout_seconds=timeout_seconds) as client:
        for name in images:
            try:
                image = _read(name)
                result = call(client, image)
                picture = None if out is None else _free(out / f"{_stem(name)}.png" if to_folder else out, written)
                if picture is not None:
                    _write(image, result.reply, picture)
            except CallFailed as error:
                failed = True
                errors.print(f"[bold red]error:[/] {escape(f'{name}: {_advice(error, server)}')}")
                continue
            except OSError as error:
                failed = True
                errors.print(f"[bold red]error:[/] {escape(f'{name}: {_trouble(error)}')}")
                continue
            if as_json:
                sys.stdout.write(json.dumps(_plain(name, result, picture), ensure_ascii=False) + "\n")
                sys.stdout.flush()
            else:
                _show(console, name, result, picture)
    if failed:
        raise typer.Exit(1)


def _read(name: str) -> bytes:
    return sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()


def _stem(name: str) -> str:
    return "stdin" if name == STDIN else Path(name).stem


def _free(path: Path, written: set[Path]) -> Path:
    """Pictures of the same name from two folders must not overwrite each other."""
    candidate = path
    count = 1
    while candidate in written:
        count += 1
        candidate = path.with_stem(f"{path.stem}-{count}")
    written.add(candidate)
    return candidate


def _write(image: bytes, reply: Reply, path: Path) -> None:
    try:
        annotate(image, reply).save(path)
    except ValueError as error:  # what Pillow says to an unknown ending
        raise OSError(f"cannot write {path}: {error}; use an ending like .png or .jpg") from error


def _trouble(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"no such file: {error.filename}"
    if isinstance(error, IsADirectoryError):
        return "is a folder; name the pictures in it"
    return str(error)


def _advice(error: CallFailed, server: str) -> str:
    """One line: what is wrong and what to do."""
    if error.reason:
        retry = "" if error.retry_after_seconds is None else f"; retry in {error.retry_after_seconds:.2g} s"
        return f"{error.reason}: {error.message}{retry} (request {error.request_id})"
    if error.code is grpc.StatusCode.UNAVAILABLE:
        return f"no server answers at {server}; start it with: mobilevision serve, or name another one with --server"
    if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer from {server} in time; the server is busy, or not one of ours; allow more with --timeout"
    if error.code is grpc.StatusCode.UNIMPLEMENTED:
        return f"{server} is another kind of server: it does not know mobilevision.v1.VisionService"
    return f"{error.code.name}: {error.message} (request {error.request_id})"


def _plain(name: str, result: Result[Any], picture: Path | None) -> dict[str, Any]:
    """The JSON line. Bytes (masks) are base64, as in protobuf's JSON; COCO's counts are text already."""
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
    return line if picture is None else line | {"annotated": str(picture)}


def _show(console: Console, name: str, result: Result[Any], picture: Path | None) -> None:
    reply = result.reply
    weights = vision_pb2.WeightsState.Name(reply.model.weights).removeprefix("WEIGHTS_STATE_").lower()
    console.print()
    size = f"{reply.picture.width} x {reply.picture.height} {reply.picture.format}"
    console.print(f"[bold]{escape(name)}[/] [dim]{size}, {escape(reply.model.name)} {escape(reply.model.version)}[/]")
    if reply.model.weights == vision_pb2.WEIGHTS_STATE_RANDOM:
        console.print("[bold white on red] weights: random [/] [red]never trained: this answer means nothing[/]")
    elif reply.model.weights == vision_pb2.WEIGHTS_STATE_DEMO:
        console.print("[yellow]weights: demo, trained on drawn shapes: expect nonsense on photographs[/]")
    else:
        console.print(f"[dim]weights: {weights}[/]")
    console.print(_table(reply))
    stages = " · ".join(f"{stage} {result.stage_ms[stage]:.1f}" for stage in STAGES if stage in result.stage_ms)
    batch = "" if result.batch_size is None else f" · batch of {result.batch_size}"
    console.print(f"[dim]{stages or 'no stage times'} ms · call {result.elapsed_ms:.1f} ms{batch}[/]")
    if picture is not None:
        console.print(f"[dim]annotated picture: {escape(str(picture))}[/]")


def _table(reply: Reply) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    right = partial(table.add_column, justify="right")
    if isinstance(reply, vision_pb2.ClassifyResponse):
        table.add_column("label")
        right("id")
        right("score")
        for label in reply.labels:
            table.add_row(escape(label.name), str(label.id), f"{label.score:.4f}")
    elif isinstance(reply, vision_pb2.DetectResponse):
        table.add_column("label")
        right("score")
        right("x_min")
        right("y_min")
        right("x_max")
        right("y_max")
        for found in reply.detections:
            box = found.box
            edges = (f"{edge:.0f}" for edge in (box.x_min, box.y_min, box.x_max, box.y_max))
            table.add_row(escape(found.label.name), f"{found.label.score:.3f}", *edges)
        if not reply.detections:
            table.add_row("[dim]nothing above the threshold[/]")
    else:
        table.add_column("class")
        right("id")
        right("area")
        for region in reply.classes:
            table.add_row(escape(region.name), str(region.id), f"{region.area_fraction:.1%}")
    return table
