"""The command `mobilevision models add`: a TorchScript module of one's own in, an archive and a report out.

Exit codes: 0 built, 1 the module cannot be served, 2 a wrong option or file. The options are those of a definition file
with `torchscript`, which `models build` takes.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import typer

from model_store.cli import terminal
from model_store.cli.build import build_targets
from model_store.cli.build_options import or_bad_parameter, size_of, three_of
from model_store.cli.targets import DefinedTarget
from model_store.definition import read


def add(
    module: Annotated[Path, typer.Argument(help="File of torch.jit.save. It is code: add only what you trust.")],
    name: Annotated[str, typer.Option(help="The name of your model.")],
    task: Annotated[str, typer.Option(help="classify, detect or segment.")],
    labels: Annotated[str, typer.Option(help="File with one label per line in class order, or a JSON file.")],
    input_size: Annotated[str, typer.Option("--input", help="WIDTHxHEIGHT of the input in pixels, such as 256x192.")],
    mean: Annotated[
        str | None, typer.Option(help="Three numbers for values in 0..1, such as 0.485,0.456,0.406 [0,0,0].")
    ] = None,
    std: Annotated[str | None, typer.Option(help="Three numbers, as --mean [1,1,1].")] = None,
    channels: Annotated[str | None, typer.Option(help="RGB or BGR [RGB].")] = None,
    resize: Annotated[str | None, typer.Option(help="squash or crop [squash].")] = None,
    background: Annotated[
        str | None,
        typer.Option(help="The class without a label: first, last or none. In a detector, first: labels from 1."),
    ] = None,
    boxes: Annotated[
        str | None, typer.Option(help="Unit of a detector's corners: pixels or unit (0..1) [what they look like].")
    ] = None,
    max_boxes: Annotated[int | None, typer.Option(help="A detector's boxes per picture [100].")] = None,
    score_threshold: Annotated[
        float | None, typer.Option(help="A detector's boxes with scores below are dropped [0].")
    ] = None,
    align_corners: Annotated[
        bool | None, typer.Option(help="A segmenter's maps are enlarged with aligned corners [no].")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights, for the card.")] = None,
    version: Annotated[str | None, typer.Option(help="Version of the archive [1.0].")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write the archive to.")] = terminal.ARCHIVES,
    force: Annotated[bool, typer.Option("--force", help="Build an archive that is up to date too.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Where it fails, print the traceback too.")] = False,
) -> None:
    """Check a TorchScript module of your own, and build an archive of it. The report has one line per check."""
    content = _given(
        name=name,
        torchscript=str(module),
        task=task,
        version=version,
        labels=labels,
        licence=licence,
        input=size_of(input_size),
        preprocess=_given(
            resize=resize,
            channels=channels,
            mean=three_of(mean, "--mean"),
            std=three_of(std, "--std"),
        ),
        head=_given(
            background=background,
            boxes=boxes,
            max_boxes=max_boxes,
            score_threshold=score_threshold,
            align_corners=align_corners,
        ),
    )
    if not module.is_file():
        raise typer.BadParameter(f"{module}: no such file", param_hint="FILE")
    definition = or_bad_parameter(partial(read.parse, content, where="options", folder=Path()))
    target = DefinedTarget(definition, tomli_w.dumps(content), seed=0)
    build_targets([target], out=out, force=force, verbose=verbose)


def _given(**values: Any) -> dict[str, Any]:
    """The values that were given."""
    return {key: value for key, value in values.items() if value not in (None, {})}
