"""Load on a server, from separate processes. A closed loop uses h2load where it is installed; an open loop uses Python.

In: targets. Out: typed results, with the CPU time of the generator itself. h2load counts failed gRPC calls as
successes. Callers that measure a gRPC server therefore read its own count (`systems.Running.failures`).
"""

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import percentile
from benchmarks.machine import ROOT
from benchmarks.outcomes import Outcome
from benchmarks.plans import ClosedPlan, OpenPlan, Outcomes
from benchmarks.target import Target

WARM_UP_SECONDS = 0.5  # the shortest warm-up
_GRACE_SECONDS = 60.0


class LoadFailed(RuntimeError):
    """The generator itself failed. The message contains its output."""


@dataclass(frozen=True)
class Closed:
    """Result of a closed-loop run. It counts the requests that ended in the measured time."""

    clients: int
    seconds: float
    answered: int
    failed: int
    per_second: float
    p50_ms: float
    p99_ms: float
    client_cpu_seconds: float


def generator() -> str:
    """Name and version of the closed-loop generator that is used on this machine."""
    h2load = shutil.which("h2load")
    if h2load is None:
        return "python asyncio"
    version = subprocess.run([h2load, "--version"], capture_output=True, text=True, check=True).stdout.split()
    return " ".join(version[:2])


def closed_loop(
    targets: Sequence[Target], *, clients: int, seconds: float, warm_up_seconds: float = WARM_UP_SECONDS
) -> Closed:
    """Load from `clients` connections with one request at a time each, spread evenly over `targets`.

    Answers within the warm-up do not count. Choose it long enough for the first answer of every client.
    Raises `LoadFailed`.
    """
    if shutil.which("h2load") is None:
        return _closed_python(targets, clients=clients, seconds=seconds, warm_up_seconds=warm_up_seconds)
    return _closed_h2load(targets, clients=clients, seconds=seconds, warm_up_seconds=warm_up_seconds)


def capacity_per_second(targets: Sequence[Target], *, clients: int, seconds: float) -> float:
    """Answers per second in a closed loop, after a warm-up of `seconds`. Raises `LoadFailed` if there is no answer.

    It uses the Python generator, as open loops do. The generator then takes the same share of the cores in both.
    """
    _closed_python(targets, clients=clients, seconds=seconds)
    closed = _closed_python(targets, clients=clients, seconds=seconds)
    if closed.answered == 0:
        raise LoadFailed(f"nothing was answered within {seconds:g} s; is the machine busy with something else?")
    return closed.per_second


def open_loop(plan: OpenPlan) -> Outcomes:
    """Send the requests of the plan from a separate process. Raises `LoadFailed`."""
    return _run_python(plan, limit_seconds=plan.arrivals_seconds[-1] + plan.deadline_seconds + _GRACE_SECONDS)


def _closed_python(
    targets: Sequence[Target], *, clients: int, seconds: float, warm_up_seconds: float = WARM_UP_SECONDS
) -> Closed:
    plan = ClosedPlan(tuple(targets), clients=clients, warm_up_seconds=warm_up_seconds, seconds=seconds)
    outcomes = _run_python(plan, limit_seconds=seconds + warm_up_seconds + _GRACE_SECONDS)
    latencies = [record.seconds for record in outcomes.records if record.outcome is Outcome.ANSWERED]
    return _closed(latencies, len(outcomes.records) - len(latencies), clients, seconds, outcomes.cpu_seconds)


def _closed_h2load(targets: Sequence[Target], *, clients: int, seconds: float, warm_up_seconds: float) -> Closed:
    latencies: list[float] = []
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        runs: list[tuple[Target, int, list[str], Path]] = []
        for number, target in enumerate(targets):
            share = clients // len(targets) + (number < clients % len(targets))
            if share:
                started = _h2load(target, share, seconds, warm_up_seconds, Path(folder) / f"{number}")
                runs.append((target, share, *started))
        outputs, cpu_seconds = _run([command for _, _, command, _ in runs], seconds + warm_up_seconds + _GRACE_SECONDS)
        for (target, share, _, log), output in zip(runs, outputs, strict=True):
            share_of_warm_up = warm_up_seconds / seconds
            answered, others = read_h2load_log(log.read_text(), output, target, clients=share, warm_up=share_of_warm_up)
            latencies += answered
            failed += others
    return _closed(latencies, failed, clients, seconds, cpu_seconds)


def read_h2load_log(log: str, output: str, target: Target, *, clients: int, warm_up: float) -> tuple[list[float], int]:
    """Latencies (seconds) of answered requests and the number of other requests, from h2load's log and output.

    `warm_up` is the length of the warm-up as a share of the measured time.

    h2load's HTTP/1.1 parser reports status 0 for a status line without a reason phrase, as TorchServe sends it. Such
    requests count as answered only if the bytes of all bodies match that many good replies; error bodies have another
    length. h2load adds the bytes of the warm-up but logs no line for them. The allowance for them is twice the measured
    rate, and one reply more or less for each client.
    """
    rows = [line.split("\t") for line in log.splitlines()]
    good = {"200"}
    body = re.search(r"\((\d+)\) data", output)
    if body and target.reply_bytes:
        bodies, most = int(body[1]) / target.reply_bytes, len(rows) * (1 + 2 * warm_up)
        if len(rows) - clients <= bodies <= most + clients:
            good.add("0")
    latencies = [int(microseconds) / 1e6 for _, status, microseconds, *_ in rows if status in good]
    return latencies, len(rows) - len(latencies)


def _h2load(target: Target, clients: int, seconds: float, warm_up_seconds: float, path: Path) -> tuple[list[str], Path]:
    body, log = path.with_suffix(".body"), path.with_suffix(".tsv")
    body.write_bytes(target.wire_body())
    log.touch()
    content_type = "application/grpc" if target.protocol == "grpc" else target.content_type
    options = ["-H", "te: trailers"] if target.protocol == "grpc" else ["--h1"]
    return [
        "h2load",
        *options,
        *("-H", f"content-type: {content_type}"),
        *("-D", f"{round(seconds * 1000)}ms"),
        # Without a warm-up h2load 1.52 sends nothing in a timed run.
        f"--warm-up-time={round(warm_up_seconds * 1000)}ms",
        *("-c", str(clients), "-m", "1", "-d", str(body), f"--log-file={log}", target.url),
    ], log


def _closed(latencies: list[float], failed: int, clients: int, seconds: float, cpu_seconds: float) -> Closed:
    return Closed(
        clients=clients,
        seconds=seconds,
        answered=len(latencies),
        failed=failed,
        per_second=len(latencies) / seconds,
        p50_ms=percentile(latencies, 0.50) * 1e3,
        p99_ms=percentile(latencies, 0.99) * 1e3,
        client_cpu_seconds=cpu_seconds,
    )


def _run_python(plan: OpenPlan | ClosedPlan, *, limit_seconds: float) -> Outcomes:
    with tempfile.TemporaryDirectory() as folder:
        plan_path, records_path = Path(folder) / "plan", Path(folder) / "records"
        plan_path.write_bytes(pickle.dumps(plan))
        command = [sys.executable, "-m", "benchmarks.client", str(plan_path), str(records_path)]
        _run([command], limit_seconds)
        if not records_path.exists():
            raise LoadFailed("the Python generator wrote no records")
        outcomes = pickle.loads(records_path.read_bytes())  # noqa: S301 - written by our own child
    assert isinstance(outcomes, Outcomes)
    return outcomes


def _run(commands: Sequence[Sequence[str]], limit_seconds: float) -> tuple[list[str], float]:
    """Run all commands at once until they end. Returns the output of each and the CPU seconds of all.

    Raises `LoadFailed`.
    """
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    before = os.times()
    outputs = []
    try:
        for process in processes:
            output, _ = process.communicate(timeout=limit_seconds)
            if process.returncode != 0:
                raise LoadFailed(f"{process.args!r} ended with {process.returncode}\n{output[-2000:]}")
            outputs.append(output)
    except subprocess.TimeoutExpired as error:
        raise LoadFailed(f"the generator did not end within {limit_seconds:.0f} s") from error
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return outputs, spent
