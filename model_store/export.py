"""Export: from an entry and weights to the TorchScript module of the archive, and to its card.

The module's contract: uint8 [N, H, W, 3] RGB, already at the card's size, to a tuple of tensors of fixed shape per
picture (`ServedClassifier`, `ServedDetector`, `ServedSegmenter`). Normalisation, network and post-processing are
inside; N is free; rows do not influence each other. Weights are float32 and may be moved to another dtype later
(`module.to(dtype)`): the input is normalised in float32 and cast to the weights' dtype, and post-processing runs in
float32. Equal entries and weights give equal bytes, on any machine with the same torch.
"""

import hashlib
import io
import pickle
import subprocess
import sys
import tempfile
import warnings
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, assert_never

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model_store import agreement, assemble, labels, layouts, weights, zoo
from model_store.card import Agreement, Card, Normalize, Output, Parity, Weights, WeightsState
from model_store.demo import checkpoints
from model_store.heads.deeplabv3 import class_map
from model_store.heads.detections import cvnets_detections, mmdet_detections

BEST_CLASSES = 100  # classes that a classification answers at most
PARITY_PICTURES = 3  # batch that the parity figures are measured on
PARITY_LIMIT = 1e-3  # of the largest raw output: more than rounding, so the export is broken


class ExportError(Exception):
    """The scripted module could not be made, or does not do what the eager one does."""


@dataclass(frozen=True)
class Exported:
    """What an archive is made of: its card and the bytes of its TorchScript module."""

    card: Card
    module_bytes: bytes


@dataclass(frozen=True)
class Compiled:
    """What `compile_entry` answers: the bytes of the TorchScript module, and what was found out about it."""

    module_bytes: bytes
    parity: Parity
    bfloat16: Agreement


class Pixels(nn.Module):
    """uint8 [N, H, W, 3] RGB to the network's input: [N, 3, H, W], scaled to 0..1, ordered, minus mean, over std."""

    scale_steps: Tensor
    shift_steps: Tensor
    like_weights: Tensor

    def __init__(self, *, normalize: Normalize) -> None:
        super().__init__()
        std = torch.tensor(normalize.std, dtype=torch.float64)
        mean = torch.tensor(normalize.mean, dtype=torch.float64)
        scale = (1.0 / (255.0 * std)).float().view(1, 3, 1, 1)
        shift = (-mean / std).float().view(1, 3, 1, 1)
        self.flip = normalize.channel_order == "BGR"
        # As integers, because `module.to(torch.bfloat16)` rounds float buffers, 1/255 by 0.4 %. In steps of 2**-40
        # nothing is lost: a float32 from 2**-16 up is a multiple of that.
        self.register_buffer("scale_steps", (scale.double() * 2.0**40).round().to(torch.int64))
        self.register_buffer("shift_steps", (shift.double() * 2.0**40).round().to(torch.int64))
        self.register_buffer("like_weights", torch.zeros(()))  # has the weights' dtype after any cast

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise in float32, answer in the dtype of the weights."""
        x = pixels.permute(0, 3, 1, 2)  # (N, H, W, 3) -> (N, 3, H, W), channels last in memory
        if self.flip:
            x = x.flip(1)
        scale = self.scale_steps.to(torch.float32) * 2.0**-40
        shift = self.shift_steps.to(torch.float32) * 2.0**-40
        y = x.to(torch.float32) * scale + shift
        return y.to(self.like_weights.dtype)


class ServedClassifier(nn.Module):
    """Pictures to their best K = min(classes, 100) classes: scores float32 [N, K], falling, and labels int32 [N, K]."""

    def __init__(self, *, pixels: Pixels, network: nn.Module, classes: int) -> None:
        super().__init__()
        self.pixels = pixels
        self.network = network
        self.best = min(classes, BEST_CLASSES)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Take uint8 [N, H, W, 3], answer (scores, labels)."""
        logits: Tensor = self.network(self.pixels(pixels))  # (N, classes)
        scores, best = torch.topk(logits.float().softmax(dim=1), self.best, dim=1)
        return scores, best.to(torch.int32)


class ServedDetector(nn.Module):
    """Pictures to at most M boxes, best first.

    boxes float32 [N, M, 4] (x0, y0, x1, y1 in 0..1 of the input), scores float32 [N, M], labels int32 [N, M] from 0,
    without background, counts int32 [N]; rows from the count on are 0.
    """

    def __init__(self, *, pixels: Pixels, network: nn.Module, detections: nn.Module) -> None:
        super().__init__()
        self.pixels = pixels
        self.network = network
        self.detections = detections

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take uint8 [N, H, W, 3], answer (boxes, scores, labels, counts)."""
        class_logits, box_deltas = self.network(self.pixels(pixels))
        boxes, scores, found, counts = self.detections(class_logits, box_deltas)
        return boxes.clamp(0.0, 1.0), scores, found, counts


class ServedSegmenter(nn.Module):
    """Pictures to class maps: classes uint8 [N, H, W], and confidence uint8 [N, h, w] at the logits' own resolution.

    Confidence is the probability of the best class of a cell, times 255, rounded.
    """

    def __init__(self, *, pixels: Pixels, network: nn.Module, align_corners: bool) -> None:
        super().__init__()
        self.pixels = pixels
        self.network = network
        self.align_corners = align_corners

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Take uint8 [N, H, W, 3], answer (classes, confidence)."""
        raw: Tensor = self.network(self.pixels(pixels))
        logits = raw.float()  # (N, K, h, w)
        classes = class_map(logits, height=pixels.size(1), width=pixels.size(2), align_corners=self.align_corners)
        confidence = (logits.softmax(dim=1).amax(dim=1) * 255.0).round().to(torch.uint8)  # (N, K, h, w) -> (N, h, w)
        return classes, confidence


Served = ServedClassifier | ServedDetector | ServedSegmenter


def served(entry: zoo.Entry, network: assemble.Network) -> Served:
    """Wrap a network in the module contract of its task, in eval mode."""
    pixels = Pixels(normalize=entry.normalize)
    height, width = entry.input.height, entry.input.width
    head = entry.head
    if isinstance(head, zoo.ClassifierHead):
        return ServedClassifier(pixels=pixels, network=network, classes=len(labels.read(entry.labels))).eval()
    if isinstance(head, zoo.SSDLiteHead):
        make = cvnets_detections if head.form == "cvnets" else mmdet_detections
        detections = make(height=height, width=width, output_stride=entry.output_stride)
        return ServedDetector(pixels=pixels, network=network, detections=detections).eval()
    if isinstance(head, zoo.DeepLabV3Head):
        return ServedSegmenter(pixels=pixels, network=network, align_corners=head.align_corners).eval()
    assert_never(head)


OUTPUT_NAMES = {
    ServedClassifier: ("scores", "labels"),
    ServedDetector: ("boxes", "scores", "labels", "counts"),
    ServedSegmenter: ("classes", "confidence"),
}
_DTYPES: dict[torch.dtype, Any] = {torch.float32: "float32", torch.int32: "int32", torch.uint8: "uint8"}


def script(module: Served) -> torch.jit.ScriptModule:
    """Compile a served module; the one place that does."""
    with warnings.catch_warnings():
        # torch 2.13 calls TorchScript deprecated; it is what TorchServe and libtorch load, and is supported meanwhile.
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted: torch.jit.ScriptModule = torch.jit.script(module)
    return scripted


def save(module: torch.jit.ScriptModule) -> bytes:
    """The module's archive, without what differs between equal exports.

    Debug records hold absolute paths of the sources, and the serialization id is a checksum that includes them; neither
    is needed to load. What is left depends on the order of sets of strings, and on what the process scripted before
    (class names get numbers): `compile_entry` sees to both.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(module, buffer)
    out = io.BytesIO()
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as cleaned:
        for name in archive.namelist():
            if not name.endswith((".debug_pkl", "/.data/serialization_id")):
                cleaned.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), archive.read(name))
    return out.getvalue()


def load(module_bytes: bytes) -> torch.jit.ScriptModule:
    """Load a saved module onto the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
            io.BytesIO(module_bytes), map_location="cpu"
        )
    return module


def raw_outputs(module: Any, pixels: Tensor) -> list[Tensor]:
    """What the network inside a served module (eager or scripted) answers before post-processing."""
    with torch.inference_mode():
        raw = module.network(module.pixels(pixels))
    return list(raw) if isinstance(raw, tuple) else [raw]


def difference(first: list[Tensor], second: list[Tensor]) -> float:
    """Largest absolute difference between two lists of tensors of equal shapes."""
    return max(float((a.double() - b.double()).abs().max()) for a, b in zip(first, second, strict=True))


def measure_parity(eager: Served, scripted: Any, reloaded: Any, pixels: Tensor) -> Parity:
    """Agreement of the network's raw outputs on a batch; raises `ExportError` where it is not a matter of rounding.

    Raw, because post-processing orders and counts: a rounding error may swap two equal scores, which says nothing.
    """
    expected, found = raw_outputs(eager, pixels), raw_outputs(scripted, pixels)
    single = [raw_outputs(scripted, pixels[i : i + 1]) for i in range(pixels.shape[0])]
    rows = [torch.cat(parts) for parts in zip(*single, strict=True)]
    parity = Parity(
        scripted_max_abs_diff=difference(expected, found),
        reloaded_max_abs_diff=difference(found, raw_outputs(reloaded, pixels)),
        batch_row_max_abs_diff=difference(found, rows),
    )
    limit = PARITY_LIMIT * max(1.0, *(float(tensor.abs().max()) for tensor in expected))
    for name, value in parity.model_dump().items():
        if not value <= limit:
            raise ExportError(f"{name} is {value:.3g}, more than rounding explains ({limit:.3g}); this is a bug")
    return parity


def sample_pixels(entry: zoo.Entry, count: int) -> Tensor:
    """Reproducible pictures, uint8 [count, H, W, 3]: coarse blocks with fine noise, so that outputs differ."""
    generator = torch.Generator().manual_seed(0)
    height, width = entry.input.height, entry.input.width
    cells = torch.randint(0, 200, (count, -(-height // 32), -(-width // 32), 3), generator=generator)
    blocks = cells.repeat_interleave(32, dim=1).repeat_interleave(32, dim=2)[:, :height, :width]
    return (blocks + torch.randint(0, 56, blocks.shape, generator=generator)).to(torch.uint8)


def compile_here(entry: zoo.Entry, state: dict[str, Tensor]) -> Compiled:
    """Script, save, and measure, in this process."""
    torch.set_num_threads(1)  # the figures are part of the card, which must not depend on the machine's cores
    network = assemble.build(entry)
    weights.load(network, state, layouts.get("native"))
    eager = served(entry, network)
    try:
        scripted = script(eager)
    except Exception as error:  # torch raises many unrelated types from the compiler
        raise ExportError(f"{entry.name} does not compile: {error}") from error
    module_bytes = save(scripted)
    return Compiled(
        module_bytes=module_bytes,
        parity=measure_parity(eager, scripted, load(module_bytes), sample_pixels(entry, PARITY_PICTURES)),
        bfloat16=agreement.measure(
            entry.task, lambda: load(module_bytes), names=OUTPUT_NAMES[type(eager)], size=entry.input
        ),
    )


def compile_entry(entry: zoo.Entry, state: dict[str, Tensor]) -> Compiled:
    """Script, save, and measure, in a fresh process, so that the bytes depend on the entry and the weights only.

    A process of its own, because TorchScript numbers class names through the life of one, and with a fixed hash
    seed, because it writes constants in the order of a set of strings.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder)
        (job / "entry.pickle").write_bytes(pickle.dumps(entry))
        save_file({name: value.contiguous() for name, value in state.items()}, job / "state.safetensors")
        code = "import sys; from model_store import export; export.compile_job(sys.argv[1])"
        command = ["env", "PYTHONHASHSEED=0", sys.executable, "-c", code, folder]
        done = subprocess.run(
            command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False, timeout=600
        )
        if done.returncode != 0:
            raise ExportError(f"exporting {entry.name} failed:\n{done.stderr.strip()}")
        compiled: Compiled = pickle.loads((job / "compiled.pickle").read_bytes())  # noqa: S301 - written by `compile_job`
        return compiled


def compile_job(folder: str) -> None:
    """The other side of `compile_entry`: read the job from its folder, leave the results there."""
    job = Path(folder)
    entry = pickle.loads((job / "entry.pickle").read_bytes())  # noqa: S301 - written by our own parent process
    compiled = compile_here(entry, load_file(job / "state.safetensors"))
    (job / "compiled.pickle").write_bytes(pickle.dumps(compiled))


def describe_outputs(module: Served, pixels: Tensor) -> tuple[Output, ...]:
    """Names, dtypes and shapes (without N) of what the module answers for `pixels`."""
    with torch.inference_mode():
        answers = module(pixels)
    return tuple(
        Output(name=name, dtype=_DTYPES[answer.dtype], shape=tuple(answer.shape[1:]))
        for name, answer in zip(OUTPUT_NAMES[type(module)], answers, strict=True)
    )


def export_network(
    entry: zoo.Entry, network: assemble.Network, *, state: WeightsState, source: str, published: dict[str, float]
) -> Exported:
    """Make the module and the card of a network whose weights are in place; `source` says where they are from."""
    own = {name: value.detach().cpu() for name, value in network.state_dict().items()}
    compiled = compile_entry(entry, own)
    card = Card(
        name=entry.name,
        task=entry.task,
        family=entry.family,
        variant=entry.variant,
        head=entry.head_name,
        paper=entry.paper,
        input=entry.input,
        preprocess=entry.preprocess,
        normalize=entry.normalize,
        labels=labels.read(entry.labels),
        outputs=describe_outputs(served(entry, network), sample_pixels(entry, 1)),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        macs=assemble.count_macs(network, entry.input.height, entry.input.width),
        weights=Weights(
            state=state,
            source=source,
            sha256=weights.digest(own),
            licence=entry.licence if state is WeightsState.OFFICIAL else "",
            published=published,
        ),
        parity=compiled.parity,
        bfloat16=compiled.bfloat16,
        module_sha256=hashlib.sha256(compiled.module_bytes).hexdigest(),
    )
    return Exported(card=card, module_bytes=compiled.module_bytes)


def export(
    name: str,
    *,
    checkpoint: Path | None,
    seed: int = 0,
    layout: str | None = None,
    source: str | None = None,
    official: bool = False,
) -> Exported:
    """Export the entry called `name` with the weights of `checkpoint`, or with seeded random ones where it is None.

    `layout` names the key layout of the checkpoint (default: that of the entry's official one); where it was trained
    on another channel order, preprocessing or attention, the card and the module follow it. `source` is what the card
    says about where the checkpoint is from (default: the file's name), `official` whether it is the one its authors
    published. Raises `zoo.UnknownModel`, `layouts.UnknownLayout`, `CheckpointError`, `ExportError`.
    """
    entry = zoo.get(name)
    if checkpoint is None:
        network = assemble.build(entry)
        weights.random_(network, seed)
        return export_network(entry, network, state=WeightsState.RANDOM, source=f"random, seed {seed}", published={})
    chosen = layouts.get(layout or entry.layout)
    if chosen.channel_order is not None:
        entry = replace(entry, normalize=entry.normalize.model_copy(update={"channel_order": chosen.channel_order}))
    if chosen.preprocess is not None:
        entry = replace(entry, preprocess=chosen.preprocess)
    if chosen.attention is not None:
        entry = replace(entry, attention=chosen.attention)
    network = assemble.build(entry)
    if checkpoint == entry.committed_checkpoint:
        weights.load(network, checkpoints.read(name), chosen)
        record = checkpoints.records()[name]
        scores = {metric: round(100 * score, 2) for metric, score in record.scores.items()}
        return export_network(entry, network, state=WeightsState.DEMO, source=checkpoints.SOURCE, published=scores)
    weights.load(network, weights.read_file(checkpoint), chosen)
    # The published score belongs to the official file under its own layout; another layout is another checkpoint.
    published = dict(entry.published) if official and chosen.name == entry.layout else {}
    origin = WeightsState.OFFICIAL if official else WeightsState.CUSTOM
    return export_network(entry, network, state=origin, source=source or checkpoint.name, published=published)
