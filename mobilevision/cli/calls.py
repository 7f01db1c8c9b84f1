"""The commands `classify`, `detect` and `segment`: picture files in, tables, JSON lines and annotated pictures out.

Each command calls a running server with one picture after the other. It goes on after a failure, and the exit code is 1
if any picture failed. Results go to standard output. Failures go to standard error, one line each, with what to do.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from rich.console import Console
from rich.markup import escape

from mobilevision.cli import output
from mobilevision.client import DEFAULT_TARGET, DEFAULT_TIMEOUT_SECONDS, CallFailed, VisionClient
from mobilevision.connection import ApiKey, Ca, PlaintextKey, Tls, connect
from mobilevision.drawing import annotate
from mobilevision.results import Classification, Detections, Result, Segmentation
from service.pb.mobilevision.v1 import vision_pb2

STDIN = "-"

Call = Callable[[VisionClient, bytes], Result[Any]]

Images = Annotated[
    list[str], typer.Argument(metavar="IMAGE...", help="Picture files; - reads one from standard input.")
]
Model = Annotated[
    str, typer.Option("--model", metavar="NAME", help="Model to use [the server's default for the task].")
]
Server = Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="Address of the server.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON per picture.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="PATH", help="Write the annotated picture to this file; several pictures to a folder."
    ),
]
Timeout = Annotated[float, typer.Option("--timeout", min=0.001, help="Deadline of each call, in seconds.")]


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
    Priority, typer.Option("--priority", help="`batch` is for bulk work: interactive calls are served first.")
]


def classify(
    images: Images,
    model: Model = "",
    server: Server = DEFAULT_TARGET,
    as_json: AsJson = False,
    out: Out = None,
    timeout: Timeout = DEFAULT_TIMEOUT_SECONDS,
    api_key: ApiKey = None,
    tls: Tls = False,
    ca: Ca = None,
    plaintext_key: PlaintextKey = False,
    priority: AsPriority = Priority.INTERACTIVE,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, max=100, help="Number of labels [5].")] = None,
) -> None:
    """Name what pictures show: the best labels with their probabilities.

    Example: `mobilevision classify cat.jpg dog.jpg --top-k 3`
    """

    def call(client: VisionClient, image: bytes) -> Classification:
        return client.classify(image, model=model, top_k=top_k, priority=_PRIORITIES[priority])

    client = connect(server, timeout_seconds=timeout, api_key=api_key, tls=tls, ca=ca, plaintext_key=plaintext_key)
    _run(call, images, client=client, as_json=as_json, out=out)


def detect(
    images: Images,
    model: Model = "",
    server: Server = DEFAULT_TARGET,
    as_json: AsJson = False,
    out: Out = None,
    timeout: Timeout = DEFAULT_TIMEOUT_SECONDS,
    api_key: ApiKey = None,
    tls: Tls = False,
    ca: Ca = None,
    plaintext_key: PlaintextKey = False,
    priority: AsPriority = Priority.INTERACTIVE,
    threshold: Annotated[
        float | None, typer.Option("--threshold", min=0.0, max=1.0, help="Leave out boxes with a lower score [0.3].")
    ] = None,
    most: Annotated[int | None, typer.Option("--max", min=1, max=200, help="Highest number of boxes [100].")] = None,
) -> None:
    """Find objects in pictures: boxes in pixels, with labels and scores.

    Example: `mobilevision detect street.jpg --threshold 0.5 --out annotated.jpg`
    """

    def call(client: VisionClient, image: bytes) -> Detections:
        return client.detect(
            image, model=model, score_threshold=threshold, max_detections=most, priority=_PRIORITIES[priority]
        )

    client = connect(server, timeout_seconds=timeout, api_key=api_key, tls=tls, ca=ca, plaintext_key=plaintext_key)
    _run(call, images, client=client, as_json=as_json, out=out)


def segment(
    images: Images,
    model: Model = "",
    server: Server = DEFAULT_TARGET,
    as_json: AsJson = False,
    out: Out = None,
    timeout: Timeout = DEFAULT_TIMEOUT_SECONDS,
    api_key: ApiKey = None,
    tls: Tls = False,
    ca: Ca = None,
    plaintext_key: PlaintextKey = False,
    priority: AsPriority = Priority.INTERACTIVE,
    encoding: Annotated[
        Encoding, typer.Option("--encoding", help="Encoding of the mask in --json. --out can draw png only.")
    ] = Encoding.PNG,
) -> None:
    """Find the class of every pixel of pictures. The table lists the classes; --out and --json give the mask.

    Example: `mobilevision segment street.jpg --out annotated.jpg`
    """
    if out is not None and encoding is not Encoding.PNG:
        raise typer.BadParameter("--out can draw --encoding png only")

    def call(client: VisionClient, image: bytes) -> Segmentation:
        return client.segment(image, model=model, mask_encoding=_ENCODINGS[encoding], priority=_PRIORITIES[priority])

    client = connect(server, timeout_seconds=timeout, api_key=api_key, tls=tls, ca=ca, plaintext_key=plaintext_key)
    _run(call, images, client=client, as_json=as_json, out=out)


def register(app: typer.Typer) -> None:
    """Add the commands to the `mobilevision` command."""
    for command in (classify, detect, segment):
        app.command()(command)


def _run(call: Call, images: list[str], *, client: VisionClient, as_json: bool, out: Path | None) -> None:
    """Call the server with every picture in turn, then close the client. Raises `typer.Exit(1)` if a picture failed."""
    if images.count(STDIN) > 1:
        raise typer.BadParameter("standard input (-) can be read only once")
    annotated_files = _AnnotatedFiles.at(out, several=len(images) > 1)
    console = Console(highlight=False)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    failed = False
    with client:
        for name in images:
            try:
                image = _read(name)
                result = call(client, image)
                annotated = annotated_files.write(name, image, result, client)
            except (CallFailed, OSError) as error:
                failed = True
                errors.print(f"[bold red]error:[/] {escape(f'{name}: {advice(error, client.target)}')}")
                continue
            if as_json:
                sys.stdout.write(json.dumps(output.json_line(name, result, annotated), ensure_ascii=False) + "\n")
                sys.stdout.flush()
            else:
                output.show(console, name, result, annotated)
    if failed:
        raise typer.Exit(1)


def _read(name: str) -> bytes:
    return sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()


@dataclass(slots=True)
class _AnnotatedFiles:
    """Where annotated pictures are written: nowhere (`out` is None), to one file, or into a folder."""

    out: Path | None
    is_folder: bool
    written: set[Path] = field(default_factory=set)
    colours: dict[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def at(cls, out: Path | None, *, several: bool) -> "_AnnotatedFiles":
        """Make the folder where one is needed. Raises `typer.BadParameter` where a file stands in its place."""
        is_folder = out is not None and (out.is_dir() or several)
        if out is not None and is_folder:
            if out.exists() and not out.is_dir():
                raise typer.BadParameter(f"--out {out} is a file; several pictures need a folder")
            out.mkdir(parents=True, exist_ok=True)
        return cls(out, is_folder)

    def write(self, name: str, image: bytes, result: Result[Any], client: VisionClient) -> Path | None:
        """Write the annotated picture. Returns its path, or None where nothing is written. Raises OSError."""
        if self.out is None:
            return None
        stem = "stdin" if name == STDIN else Path(name).stem
        path = self._unused(self.out / f"{stem}.png" if self.is_folder else self.out)
        try:
            annotate(image, result.reply, colours=self._colours_of(result.reply.model.name, client)).save(path)
        except ValueError as error:  # Pillow does not know the file's suffix
            raise OSError(f"cannot write {path}: {error}; use a suffix like .png or .jpg") from error
        return path

    def _colours_of(self, model: str, client: VisionClient) -> Sequence[str]:
        if model not in self.colours:
            try:
                self.colours[model] = tuple(client.get_model(model).reply.model.label_colours)
            except CallFailed:  # a caller may be allowed to classify only: the picture gets other colours
                self.colours[model] = ()
        return self.colours[model]

    def _unused(self, path: Path) -> Path:
        """A path that this command has not written yet: pictures of two folders can have the same name."""
        candidate, count = path, 1
        while candidate in self.written:
            count += 1
            candidate = path.with_stem(f"{path.stem}-{count}")
        self.written.add(candidate)
        return candidate


# What to do about a call that failed without a reason of the server. Fields: {server}, {code}, {message}, {request}.
_ADVICE = {
    grpc.StatusCode.UNAVAILABLE: (
        "no server answers at {server}; start one with: mobilevision serve, or name another one with --server"
    ),
    grpc.StatusCode.DEADLINE_EXCEEDED: (
        "no answer from {server} in time: it is busy, or no mobilevision server; allow more with --timeout"
    ),
    grpc.StatusCode.UNIMPLEMENTED: (
        "{server} is another kind of server: it does not know mobilevision.v1.VisionService"
    ),
}
_OTHERWISE = "{code}: {message} (request {request})"


def advice(error: CallFailed | OSError, server: str) -> str:
    """One line: what is wrong and what to do."""
    if isinstance(error, OSError):
        return _unusable(error)
    if error.reason:
        retry = "" if error.retry_after_seconds is None else f"; retry in {error.retry_after_seconds:.2g} s"
        return f"{error.reason}: {error.message}{retry} (request {error.request_id})"
    advice = _ADVICE.get(error.code, _OTHERWISE)
    return advice.format(server=server, code=error.code.name, message=error.message, request=error.request_id)


def _unusable(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"no such file: {error.filename}"
    if isinstance(error, IsADirectoryError):
        return "this is a folder; name the pictures in it"
    return str(error)
