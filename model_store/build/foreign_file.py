"""Read a TorchScript file that was not written here, and look at its code: operators, constants, weights.

In: a path, and a report to write into. Out: the module on the CPU in eval mode, or `Refused`. Loading runs no code of
the file, but running the module does. The operators that read or write files are refused.
"""

import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from handlers.contract import archive_file
from model_store.build import torchscript
from model_store.build.foreign_report import Report, reason

_REDUCE = "save it in float32: model.float().eval(), then trace or script it"
# Operators that touch files or other programs; no network needs them.
_OUTSIDE = {"aten::from_file", "aten::save", "prim::PythonOp", "prim::rpc_async", "prim::rpc_sync", "prim::rpc_remote"}
_NAMESPACES = {"aten", "prim", "quantized", "mkldnn", "prepacked"}
_MOST_CODE_BYTES = 256 * 2**20
_RANDOM = re.compile(r"aten::(rand|randn|randint|randperm|bernoulli|multinomial|normal|poisson)(_like)?_?$")


def load(path: Path, report: Report) -> torch.jit.ScriptModule:
    """The module in a file, in eval mode. Raises `Refused` for any other file."""
    name = "file"
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        report.refuse(name, f"not a readable TorchScript file ({error})", "give a file of torch.jit.save")
    inside = {entry.filename.partition("/")[2] for entry in entries}
    if "constants.pkl" not in inside or not any(part.startswith("code/") for part in inside):
        report.refuse(
            name,
            "not a TorchScript file" + (", but one of torch.save" if "data.pkl" in inside else ""),
            "save it with torch.jit.script(model.eval()).save(FILE), or build a checkpoint of a known model with "
            "`mobilevision models build --base`",
        )
    unpacked = sum(entry.file_size for entry in entries)
    packed = sum(entry.file_size for entry in entries if entry.compress_type)  # torch.save compresses code alone
    if unpacked > archive_file.MOST_BYTES or packed > _MOST_CODE_BYTES:
        report.refuse(
            name,
            f"{unpacked / 1e6:,.0f} MB unpacked, in a file of {path.stat().st_size / 1e6:,.0f} MB",
            "an archive holds 2 GiB at most; save it anew with torch.jit.save",
        )
    try:
        module = torchscript.load(path.read_bytes())
    except Exception as error:  # noqa: BLE001 - torch raises many unrelated types for files it cannot read
        _refuse_load(error, report)
    report.held(name, f"TorchScript, {path.stat().st_size / 1e6:.1f} MB")
    return module.eval()


def _refuse_load(error: Exception, report: Report) -> None:
    text = str(error)
    operator = re.search(r"Unknown builtin op: ([\w:.]+?)\.?(?:\s|$)", text)
    if operator or "torchvision" in text:
        named = operator[1] if operator else "an operator of torchvision"
        report.refuse(
            "operators",
            f"needs {named}, which plain torch does not have",
            "workers have torch alone: write this step with torch's own operators, or leave it out of the module",
        )
    classes = re.search(r"__torch__\.torch\.classes\.([\w.]+)", text)
    if classes:
        report.refuse(
            "operators",
            f"needs the class {classes[1]}, which this torch does not have",
            "workers have torch alone: leave custom classes out of the module",
        )
    report.refuse("file", f"torch cannot load it ({reason(error)})", "save it anew, with a torch not newer than this")


def look(module: torch.jit.ScriptModule, report: Report) -> None:
    """Check operators, weights and constants. Raises `Refused`."""
    nodes = list(_nodes(inlined(module)))
    kinds = Counter(node.kind() for node in nodes)
    bad = sorted(kind for kind in kinds if kind.partition("::")[0] not in _NAMESPACES or kind in _OUTSIDE)
    if bad:
        report.refuse(
            "operators",
            f"uses {', '.join(bad[:5])}",
            "workers have torch's own operators alone, and no network needs files; leave this out of the module",
        )
    report.held("operators", f"{len(kinds)} kinds, all of plain torch")
    random = sorted(kind for kind in kinds if _RANDOM.fullmatch(kind))
    if random:
        report.note("random numbers", f"the code has {', '.join(random)}; see determinism")
    _weights(module, nodes, report)
    _devices(nodes, report)


def inlined(module: torch.jit.ScriptModule) -> Any:
    """A copy of the graph of `forward`, with the code of all submodules in it."""
    graph = module.inlined_graph.copy()
    torch._C._jit_pass_inline(graph)
    return graph


def _weights(module: torch.jit.ScriptModule, nodes: list[Any], report: Report) -> None:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    wrong = {
        name: value.dtype
        for name, value in tensors.items()
        if value.dtype.is_complex or (value.is_floating_point() and value.dtype is not torch.float32)
    }
    if wrong:
        name, dtype = next(iter(wrong.items()))
        kinds = f"{len(wrong)} of {len(tensors)} tensors are not float32, such as {name} ({_word(dtype)})"
        report.refuse("weights", kinds, _REDUCE)
    broken = [n for n, v in tensors.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if broken:
        report.refuse("weights", f"{broken[0]} has NaN or infinite values", "check the training")
    count = sum(parameter.numel() for parameter in module.parameters())
    constants = sum(value.numel() for value in _tensors(nodes) if value.is_floating_point())
    if constants > count:
        report.note(
            "weights",
            f"{constants:,} numbers are constants of the code (torch.jit.freeze), so they stay in float32 on the CPU; "
            "for bfloat16 or a GPU save the module before freezing it",
        )
    else:
        report.held("weights", f"{count:,} parameters, float32, finite")


def _devices(nodes: list[Any], report: Report) -> None:
    """Say which devices the code names. A traced module repeats the device that it was traced on."""
    named = Counter(
        node.output().toIValue().type
        for node in nodes
        if node.kind() == "prim::Constant" and node.output().type().kind() == "DeviceObjType"
    )
    elsewhere = sorted(set(named) - {"cpu"})
    if elsewhere:
        report.refuse(
            "devices",
            f"the code makes tensors on {elsewhere[0]} in {named[elsewhere[0]]} places",
            "trace it on the CPU (model.cpu()), or script it and write device=x.device",
        )
    fixed = [value for value in _tensors(nodes) if value.dim() > 0]
    if named or fixed:
        report.note(
            "devices",
            f"the code names the CPU in {named['cpu']} places and has {len(fixed)} tensors of its own, so it may run "
            "on a CPU only; for GPUs script it, with device=x.device, and register tensors as buffers",
        )
    else:
        report.held("devices", "the code names none, so it moves to any")


def _tensors(nodes: list[Any]) -> Iterator[torch.Tensor]:
    """The tensors that are constants of the code."""
    for node in nodes:
        if node.kind() == "prim::Constant" and node.output().type().isSubtypeOf(torch._C.TensorType.get()):
            value = node.output().toIValue()
            if isinstance(value, torch.Tensor):
                yield value


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
