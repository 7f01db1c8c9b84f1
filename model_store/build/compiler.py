"""Compiler: from an entry and its weights to the bytes of the TorchScript module and its figures.

A fresh process does the work (see `fresh_process`), so the bytes depend on the entry and the weights only, on any
machine with the same torch.
"""

import pickle
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from handlers.contract.card import Agreement, Parity
from model_store import zoo
from model_store.build import agreement, assemble, fresh_process, parity, torchscript
from model_store.build.errors import ExportError
from model_store.networks.heads.registry import head_of
from model_store.weights import layouts
from model_store.weights import load as weights

TIMEOUT_SECONDS = 600.0

# Files in the folder that the two processes share.
_ENTRY, _STATE, _COMPILED = "entry.pickle", "state.safetensors", "compiled.pickle"


@dataclass(frozen=True)
class Compiled:
    """The bytes of a TorchScript module, and the figures about it for the card."""

    module_bytes: bytes
    parity: Parity
    bfloat16: Agreement


def compile_entry(entry: zoo.ModelSpec, state: dict[str, Tensor]) -> Compiled:
    """Script, save, and measure, in a fresh process. `state` has the network's own names.

    Raises `ExportError`; its `detail` is the traceback of that process.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder)
        (job / _ENTRY).write_bytes(pickle.dumps(entry))
        save_file({name: value.contiguous() for name, value in state.items()}, job / _STATE)
        fresh_process.run(
            "model_store.build.compiler:run_job",
            job,
            subject=f"exporting {entry.name}",
            timeout_seconds=TIMEOUT_SECONDS,
        )
        compiled: Compiled = pickle.loads((job / _COMPILED).read_bytes())  # noqa: S301 - written by `run_job`
        return compiled


def run_job(folder: str) -> None:
    """The fresh process of `compile_entry`: read the job from its folder, leave the result or the reason there."""
    job = Path(folder)
    try:
        entry = pickle.loads((job / _ENTRY).read_bytes())  # noqa: S301 - written by our own parent process
        compiled = compile_here(entry, load_file(job / _STATE))
    except Exception as error:
        (job / fresh_process.FAILURE).write_text(_one_line(error))
        raise
    (job / _COMPILED).write_bytes(pickle.dumps(compiled))


def compile_here(entry: zoo.ModelSpec, state: dict[str, Tensor]) -> Compiled:
    """Script, save, and measure, in this process. Raises `ExportError`."""
    torch.set_num_threads(1)  # the figures are part of the card, which must not depend on the machine's cores
    network = assemble.build(entry)
    weights.load(network, state, layouts.get("native"))
    eager = assemble.served(entry, network)
    try:
        scripted = torchscript.script(eager)
    except Exception as error:  # torch raises many unrelated types from the compiler
        raise ExportError(f"TorchScript does not compile it: {_one_line(error)}") from error
    module_bytes = torchscript.save(scripted)
    pictures = parity.sample_pixels(entry, parity.PICTURES)
    return Compiled(
        module_bytes=module_bytes,
        parity=parity.measure(eager, scripted, torchscript.load(module_bytes), pictures),
        bfloat16=agreement.measure(head_of(entry).contract, lambda: torchscript.load(module_bytes), size=entry.input),
    )


def _one_line(error: Exception) -> str:
    """The first line that an exception says, after its type where the type is not ours."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return first if isinstance(error, ExportError) else f"{type(error).__name__}: {first}"
