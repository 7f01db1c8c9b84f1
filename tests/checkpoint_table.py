"""The table of docs/checkpoints.md: containers of weights, layouts of names, and what becomes of each.

`make docs` runs this file and writes the table that `CASES` expects. tests/docs/test_checkpoints.py compares it with
what happens.
"""

import argparse
import json
import sys
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model_store import zoo
from model_store.build import assemble, fitting
from model_store.verify import golden
from model_store.weights import container
from model_store.weights import load as weights
from model_store.weights.errors import CheckpointError

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "checkpoints.md"
MARK = "<!-- written by tests/checkpoint_table.py -->"
GOLDEN = ROOT / "tests" / "parity" / "golden"

# Layout: the entry, and a file with all names and shapes of that project. `native` has the names of the network.
LAYOUTS = {
    "native": ("emo_1m_classify", None),
    "cvnets": ("mobilevit_xxs_classify", "mobilevit_xxs.json"),
    "transformers": ("mobilevit_xxs_segment", "heads/hf_deeplabv3_mobilevit_xxs.json"),
    "emo": ("emo_1m_classify", "emo_1M.json"),
    "swiftformer": ("swiftformer_xs_classify", "swiftformer_XS.json"),
    "mobileformer": ("mobileformer_26m_classify", "mobileformer_26M.json"),
}

State = dict[str, Tensor]
Write = Callable[[Path, State], Path]


@dataclass(frozen=True)
class Case:
    """One container. `result`: `loads`, `averaged` (the averaged set) or `refused`; `said`: words of the message."""

    name: str
    write: Write
    result: str = "loads"
    said: str = ""


def raw_of(layout: str) -> State:
    """Small weights under the names of a layout."""
    return {name: value.clone() for name, value in _raw_of(layout).items()}


@cache
def _raw_of(layout: str) -> State:
    entry, file = LAYOUTS[layout]
    if file is None:
        shapes = {name: tuple(value.shape) for name, value in assemble.build(zoo.get(entry)).state_dict().items()}
    else:
        content = golden.read(GOLDEN / file)
        shapes = {name: tuple(shape) for name, shape, _ in content.get("state_dict") or content["keys"]}
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.tensor(3) if name.endswith("num_batches_tracked") else torch.rand(shape, generator=generator)
        for name, shape in shapes.items()
    }


def averaged_of(raw: State) -> State:
    """Another set of weights of the same shapes."""
    return {name: value + 0.5 if value.is_floating_point() else value for name, value in raw.items()}


def outcome(case: Case, layout: str, folder: Path) -> tuple[str, str]:
    """What becomes of a container with weights in a layout: `loads`, `averaged`, `refused` or `wrong`; the message."""
    raw = raw_of(layout)
    entry = zoo.get(LAYOUTS[layout][0])
    try:
        read = container.read(case.write(folder, raw))
        found = fitting.recognised(read.state, entry, layout)
        network = _network(entry.name)
        weights.load(network, read.state, found.layout)
    except CheckpointError as error:
        return "refused", str(error)
    loaded = network.state_dict()
    for result, state in (("loads", raw), ("averaged", averaged_of(raw))):
        expected = weights.to_native(state, found.layout)
        if all(_close(loaded[name], value) for name, value in expected.items()):
            return result, " ".join(read.notes)
    return "wrong", ""


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.float(), other.float(), atol=4e-3)  # bfloat16 has eight bits


@cache
def _network(name: str) -> nn.Module:
    return assemble.build(zoo.get(name))


def _saved(make: Callable[[State], Any], name: str = "a.pt", **options: Any) -> Write:
    def write(folder: Path, raw: State) -> Path:
        torch.save(make(raw), folder / name, **options)
        return folder / name

    return write


def _prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: value for name, value in state.items()}


def _safetensors(prefix: str) -> Write:
    def write(folder: Path, raw: State) -> Path:
        save_file(_prefixed(prefix, raw), folder / "model.safetensors")
        return folder / "model.safetensors"

    return write


def _swa(raw: State) -> State:
    """What `torch.optim.swa_utils.AveragedModel(model).state_dict()` has."""
    return {"n_averaged": torch.tensor(7), **_prefixed("module.", raw)}


def _half(dtype: torch.dtype) -> Callable[[State], State]:
    return lambda raw: {name: value.to(dtype) if value.is_floating_point() else value for name, value in raw.items()}


def _shards(ending: str, index: str) -> Write:
    def write(folder: Path, raw: State) -> Path:
        names = list(raw)
        files = {name: f"part-{number % 2}.{ending}" for number, name in enumerate(names)}
        for file in set(files.values()):
            part = {name: raw[name] for name in names if files[name] == file}
            save_file(part, folder / file) if ending == "safetensors" else torch.save(part, folder / file)
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": files}))
        return folder

    return write


@contextmanager
def _foreign_class() -> Any:
    """A class of OpenMMLab, which is not there when the file is read."""
    kind = type("HistoryBuffer", (), {})
    kind.__module__, kind.__qualname__ = "mmengine.logging.history_buffer", "HistoryBuffer"
    names = ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer")
    before = {name: sys.modules.get(name) for name in names}
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    sys.modules[names[-1]].HistoryBuffer = kind  # type: ignore[attr-defined]
    try:
        yield kind
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def _openmmlab(folder: Path, raw: State) -> Path:
    with _foreign_class() as history:
        content = {"meta": {"CLASSES": ["cat"]}, "state_dict": OrderedDict(raw), "message_hub": {"loss": history()}}
        torch.save(content, folder / "epoch_9.pth")
    return folder / "epoch_9.pth"


def _mmengine_ema(raw: State) -> dict[str, Any]:
    ema = {"steps": torch.tensor(7), **_prefixed("module.", raw)}
    return {"meta": {"mmengine_version": "0.10.4"}, "state_dict": averaged_of(raw), "ema_state_dict": ema}


def _torchscript(folder: Path, _: State) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(folder / "a.pt"))
    return folder / "a.pt"


class Hostile:
    """Would print if it were loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the code that would run."""
        return print, ("this must not be printed",)


def _truncated(folder: Path, raw: State) -> Path:
    torch.save(raw, folder / "a.pt")
    content = (folder / "a.pt").read_bytes()
    (folder / "a.pt").write_bytes(content[: len(content) // 2])
    return folder / "a.pt"


def _bomb(folder: Path, _: State) -> Path:
    """A file of torch.save, compressed: 64 MB of zeros in 64 kB."""
    torch.save({"a": torch.zeros(2**24)}, folder / "plain.pt")
    with (
        zipfile.ZipFile(folder / "plain.pt") as plain,
        zipfile.ZipFile(folder / "a.pt", "w", zipfile.ZIP_DEFLATED) as to,
    ):
        for name in plain.namelist():
            to.writestr(name, plain.read(name))
    return folder / "a.pt"


def _changed(change: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    """The weights with the last kernel changed."""

    def make(raw: State) -> State:
        name = [name for name, value in raw.items() if value.dim() > 1][-1]
        return {**raw, name: change(raw[name])}

    return make


def _without_last(raw: State) -> State:
    return dict(list(raw.items())[:-2])


LIGHTNING = {"epoch": 9, "pytorch-lightning_version": "2.6.6", "loops": {}, "hyper_parameters": {"lr": 1e-3}}

CASES = (
    Case("dict of tensors", _saved(lambda raw: raw)),
    Case("the same in the old form of `torch.save`", _saved(lambda raw: raw, _use_new_zipfile_serialization=False)),
    *(
        Case(f"under `{key}`", _saved(lambda raw, key=key: {"epoch": 9, key: raw}))
        for key in ("state_dict", "model", "net", "weights", "model_state_dict")
    ),
    Case("DDP: `module.`", _saved(lambda raw: _prefixed("module.", raw)), said="stripped 'module.'"),
    Case("`torch.compile`: `_orig_mod.`", _saved(lambda raw: _prefixed("_orig_mod.", raw)), said="'_orig_mod.'"),
    Case("DDP of a compiled module", _saved(lambda raw: _prefixed("module._orig_mod.", raw)), said="module._orig_mod."),
    Case("prefix `model.`", _saved(lambda raw: _prefixed("model.", raw)), said="stripped 'model.'"),
    Case("prefix `net.model.`", _saved(lambda raw: _prefixed("net.model.", raw)), said="stripped 'net.model.'"),
    Case("safetensors", _safetensors("")),
    Case("safetensors with a prefix", _safetensors("module.model."), said="stripped 'module.model.'"),
    Case("shards of safetensors", _shards("safetensors", "model.safetensors.index.json")),
    Case("shards of `torch.save`", _shards("bin", "pytorch_model.bin.index.json")),
    Case("half precision", _saved(_half(torch.float16))),
    Case("bfloat16", _saved(_half(torch.bfloat16))),
    Case("PyTorch's `AveragedModel` (SWA, EMA)", _saved(_swa), said="dropped n_averaged"),
    Case(
        "timm: `state_dict` and `state_dict_ema`",
        _saved(
            lambda raw: {
                "arch": "x",
                "args": argparse.Namespace(lr=1),
                "state_dict": raw,
                "state_dict_ema": averaged_of(raw),
            },
            "last.pth.tar",
        ),
        "averaged",
        "took the averaged weights, 'state_dict_ema'",
    ),
    Case(
        "DeiT: `model` and `model_ema`",
        _saved(lambda raw: {"model": raw, "model_ema": averaged_of(raw), "optimizer": {}}),
        "averaged",
        "took the averaged weights, 'model_ema'",
    ),
    Case("OpenMMLab with averaging", _saved(_mmengine_ema), "averaged", "took the averaged weights, 'state_dict'"),
    Case("OpenMMLab `.pth` with classes of its own inside", _openmmlab),
    Case(
        "Lightning `.ckpt`",
        _saved(lambda raw: {**LIGHTNING, "state_dict": _prefixed("model.", raw)}, "last.ckpt"),
        said="stripped 'model.'",
    ),
    Case(
        "PyTorch's ImageNet example, `.pth.tar`",
        _saved(lambda raw: {"epoch": 9, "arch": "x", "state_dict": _prefixed("module.", raw)}, "model_best.pth.tar"),
        said="stripped 'module.'",
    ),
    Case("TorchScript", _torchscript, "refused", "a TorchScript module, not a checkpoint; serve it with"),
    Case(
        "a whole module",
        _saved(lambda _: nn.Linear(2, 2)),
        "refused",
        "a whole pickled module (torch.nn.modules.linear.Linear)",
    ),
    Case(
        "code inside", _saved(lambda raw: {"state_dict": raw, "x": Hostile()}), "refused", "would run code when loaded"
    ),
    Case("truncated", _truncated, "refused", "truncated or damaged"),
    Case("zeros, compressed", _bomb, "refused", "a compressed zip of 67 MB"),
    Case("two unnamed sets", _saved(lambda raw: {"a": raw, "b": raw}), "refused", "has several sets of weights: a, b"),
    Case("NaN in a tensor", _saved(_changed(lambda value: value * torch.nan)), "refused", "NaN or infinity"),
    Case("integers for weights", _saved(_changed(lambda value: value.to(torch.int8))), "refused", "of wrong dtype"),
    Case("a tensor of another shape", _saved(_changed(lambda value: value.unsqueeze(0))), "refused", "of wrong shape"),
    Case("a part missing", _saved(_without_last), "refused", "missing"),
)
WORDS = {"loads": "loads", "averaged": "loads the averaged set", "refused": "refused"}


def table() -> str:
    """The table, in Markdown: what `CASES` expects."""
    names = " | ".join(f"`{name}`" for name in LAYOUTS)
    lines = [f"| container | {names} | what is said |", "| --- |" + " --- |" * (len(LAYOUTS) + 1)]
    for case in CASES:
        cells = " | ".join([WORDS[case.result]] * len(LAYOUTS))
        said = case.said.replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| {case.name} | {cells} | {said or '-'} |")
    return "\n".join(lines)


def page() -> str:
    """The page, with the table between the marks."""
    before, _, rest = PAGE.read_text().partition(MARK)
    return f"{before}{MARK}\n{table()}\n{MARK}{rest.partition(MARK)[2]}"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
