"""Examine and wrap a TorchScript module that was not written here. `run_job` is the fresh process of `foreign`.

In: a folder with `job.json`. Out: `outcome.json` and, unless the module was refused, `module.pt` in that folder.
"""

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from handlers import torchscript as worker
from handlers.contract.card import Agreement, InputSize, Normalize, Output, Parity
from model_store.build import agreement, foreign_file, foreign_measure, fresh_process, torchscript
from model_store.build.foreign_measure import CONTRACTS, Subject
from model_store.build.foreign_report import Refused, Report, Wish, reason
from model_store.build.foreign_wrap import wrapped
from model_store.weights import load as weights

JOB, OUTCOME, MODULE = "job.json", "outcome.json", "module.pt"
PICTURES = 3
_SIZE_STEP = 32  # pixels, of the try at another input size

_DTYPES: dict[torch.dtype, Any] = {torch.float32: "float32", torch.int32: "int32", torch.uint8: "uint8"}


class Job(BaseModel):
    """What is asked: the file, and how it is used."""

    source: Path
    input: InputSize
    normalize: Normalize
    wish: Wish


class Facts(BaseModel):
    """What the card says about the module."""

    head: str
    options: dict[str, str | int | float | bool]
    outputs: tuple[Output, ...]
    parameters: int
    macs: int
    sha256: str
    parity: Parity
    bfloat16: Agreement | None


class Outcome(BaseModel):
    """The report, and why the module was refused, or the facts about it."""

    report: Report
    refusal: str = ""
    facts: Facts | None = None


def run_job(folder: str) -> None:
    """Read the job from its folder, leave the outcome there."""
    place = Path(folder)
    torch.set_num_threads(1)  # the figures are part of the card, which must not depend on the machine's cores
    try:
        job = Job.model_validate_json((place / JOB).read_bytes())
        report = Report()
        try:
            facts, module_bytes = examine(job, report)
            (place / MODULE).write_bytes(module_bytes)
            outcome = Outcome(report=report, facts=facts)
        except Refused as error:
            outcome = Outcome(report=report, refusal=str(error))
    except Exception as error:
        (place / fresh_process.FAILURE).write_text(f"{type(error).__name__}: {reason(error)}")
        raise
    (place / OUTCOME).write_text(outcome.model_dump_json())


def examine(job: Job, report: Report) -> tuple[Facts, bytes]:
    """Check and wrap the module; the facts and the bytes of the served module. Raises `Refused`."""
    module = foreign_file.load(job.source, report)
    foreign_file.look(module, report)
    pixels = torch.from_numpy(agreement.pictures(job.input, PICTURES))
    subject = wrapped(module, job.wish, job.normalize, pixels, report)
    parity, module_bytes = _served(subject, pixels, report)
    _another_size(subject, job.input, report)
    contract = CONTRACTS[job.wish.task]
    answers = foreign_measure.run(subject.served, pixels)
    facts = Facts(
        head=subject.form,
        options=subject.options,
        outputs=tuple(
            Output(name=name, dtype=_DTYPES[answer.dtype], shape=tuple(answer.shape[1:]))
            for name, answer in zip(contract.outputs, answers, strict=True)
        ),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        macs=_macs(subject, pixels[:1]),
        sha256=weights.digest({name: value.detach().contiguous() for name, value in module.state_dict().items()}),
        parity=parity,
        bfloat16=_bfloat16(module_bytes, job, report),
    )
    return facts, module_bytes


def _served(subject: Subject, pixels: Tensor, report: Report) -> tuple[Parity, bytes]:
    """Script the served module, and compare all forms of it."""
    foreign_measure.check_answers(subject, pixels, report)
    foreign_measure.check_determinism(subject, pixels, report)
    rows = foreign_measure.check_rows(subject, pixels, report)
    name = "scripted and saved"
    try:
        scripted = subject.served
        if not isinstance(scripted, torch.jit.ScriptModule):
            scripted = torchscript.script(subject.served.eval())
        module_bytes = torchscript.save(scripted)
        reloaded = torchscript.load(module_bytes)
    except Exception as error:  # noqa: BLE001 - torch raises many unrelated types from its compiler
        report.refuse(name, f"torch cannot script or save it with the steps around it ({reason(error)})", "simplify it")
    by_script = foreign_measure.distance(subject, subject.served, scripted, pixels, report, name)
    by_load = foreign_measure.distance(subject, scripted, reloaded, pixels, report, name)
    report.held(name, f"differ by {by_script:.2g}, reloaded by {by_load:.2g} at most")
    name = "as a worker runs it"
    try:
        frozen: Any = worker.prepare(torchscript.load(module_bytes), torch.device("cpu"), torch.float32)
        for count in (1, 2, PICTURES):
            for _ in range(2):  # the second run is another program, optimised for what the first one saw
                foreign_measure.run(frozen, pixels[:count])
    except Exception as error:  # noqa: BLE001 - torch raises many unrelated types
        report.refuse(
            name,
            f"it fails when frozen, with channels last in memory ({reason(error)})",
            "write .reshape for .view, and set no attributes in forward",
        )
    found = foreign_measure.answers_distance(subject, foreign_measure.run(frozen, pixels), pixels, report, name)
    report.held(name, f"frozen, channels last: scores differ by {found:.2g} at most")
    parity = Parity(scripted_max_abs_diff=by_script, reloaded_max_abs_diff=by_load, batch_row_max_abs_diff=rows)
    return parity, module_bytes


def _another_size(subject: Subject, size: InputSize, report: Report) -> None:
    other = torch.zeros(1, size.height + _SIZE_STEP, size.width + _SIZE_STEP, 3, dtype=torch.uint8)
    try:
        foreign_measure.run(subject.served, other)
    except Exception:  # noqa: BLE001 - torch raises many unrelated types
        tried = f"{size.width + _SIZE_STEP}x{size.height + _SIZE_STEP}"
        report.note(
            "input size", f"{size.width}x{size.height}; it does not run at {tried}: keep the size it was saved for"
        )
    else:
        report.held("input size", f"{size.width}x{size.height}; it runs at other sizes too")


def _macs(subject: Subject, pixels: Tensor) -> int:
    """Multiply-adds of convolutions and matrix products for one picture, counted while it runs."""
    with FlopCounterMode(display=False) as counter:
        foreign_measure.run(subject.served, pixels)
    return int(counter.get_total_flops()) // 2


def _bfloat16(module_bytes: bytes, job: Job, report: Report) -> Agreement | None:
    try:
        found = agreement.measure(CONTRACTS[job.wish.task], lambda: torchscript.load(module_bytes), size=job.input)
    except Exception as error:  # noqa: BLE001 - torch raises many unrelated types
        report.note("bfloat16", f"it does not run ({reason(error)}); workers will run it in float32")
        return None
    report.held("bfloat16", f"agreement {100 * found.agreement:.2f} %, scores within {found.score_max_abs_diff:.2g}")
    return found
