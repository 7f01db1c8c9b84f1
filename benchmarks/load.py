"""Load on a server, from a process of its own: a closed loop by h2load (or Python where it is absent), an open loop.

In: targets. Out: typed results with the generator's own CPU time, so that its share can be told. h2load takes gRPC
failures for successes; whoever calls gRPC checks them on the server's side (see `systems.Running.failures`).
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

WARM_UP_SECONDS = 0.5  # least
_GRACE_SECONDS = 60.0


class LoadFailed(RuntimeError):
    """The generator itself failed; the message has what it said."""


@dataclass(frozen=True)
class Closed:
    """A closed-loop run: requests that ended in the measured time."""

    clients: int
    seconds: float
    answered: int
    failed: int
    per_second: float
    p50_ms: float
    p99_ms: float
    client_cpu_seconds: float


def generator() -> str:
    """Name of the closed-loop generator that will be used, with its version."""
    h2load = shutil.which("h2load")
    if h2load is None:
        return "python asyncio"
    version = subprocess.run([h2load, "--version"], capture_output=True, text=True, check=True).stdout.split()
    return " ".join(version[:2])


def closed_loop(
    targets: Sequence[Target], *, clients: int, seconds: float, warm_up_seconds: float = WARM_UP_SECONDS
) -> Closed:
    """`clients` connections, one request at a time each, spread evenly over `targets`. Raises `LoadFailed`.

    What is answered in the warm-up does not count; it should be long enough for every client's first answer.
    """
    if shutil.which("h2load") is None:
        return _closed_python(targets, clients=clients, seconds=seconds, warm_up_seconds=warm_up_seconds)
    return _closed_h2load(targets, clients=clients, seconds=seconds, warm_up_seconds=warm_up_seconds)


def capacity_per_second(targets: Sequence[Target], *, clients: int, seconds: float) -> float:
    """What a closed loop gets answered, once warm. Raises `LoadFailed` if that is nothing.

    By the generator that open loops have: what it takes of shared cores must not look like what the server loses.
    """
    _closed_python(targets, clients=clients, seconds=seconds)
    closed = _closed_python(targets, clients=clients, seconds=seconds)
    if closed.answered == 0:
        raise LoadFailed(f"nothing was answered within {seconds:g} s; is the machine busy with something else?")
    return closed.per_second


def open_loop(plan: OpenPlan) -> Outcomes:
    """Follow the plan in a process of its own. Raises `LoadFailed`."""
    return _run_python(plan, limit_seconds=plan.arrivals_seconds[-1] + plan.deadline_seconds + _GRACE_SECONDS)


def _closed_python(
    targets: Sequence[Target], *, clients: int, seconds: float, warm_up_seconds: float = WARM_UP_SECONDS
) -> Closed:
    plan = ClosedPlan(tuple(targets), clients=clients, warm_up_seconds=warm_up_seconds, seconds=seconds)
    outcomes = _run_python(plan, limit_seconds=seconds + warm_up_seconds + _GRACE_SECONDS)
    latencies = [row.seconds for row in outcomes.rows if row.outcome is Outcome.ANSWERED]
    return _closed(latencies, len(outcomes.rows) - len(latencies), clients, seconds, outcomes.cpu_seconds)


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
        said, cpu_seconds = _run([command for _, _, command, _ in runs], seconds + warm_up_seconds + _GRACE_SECONDS)
        for (target, share, _, log), printed in zip(runs, said, strict=True):
            share_of_warm_up = warm_up_seconds / seconds
            answered, others = judge(log.read_text(), printed, target, clients=share, warm_up=share_of_warm_up)
            latencies += answered
            failed += others
    return _closed(latencies, failed, clients, seconds, cpu_seconds)


def judge(log: str, printed: str, target: Target, *, clients: int, warm_up: float) -> tuple[list[float], int]:
    """Latencies of answered requests, and the number of others, from h2load's log and what it printed.

    Its HTTP/1.1 parser reports status 0 where the status line has no reason phrase (TorchServe's has none). Those count
    as answered only if all bodies together are as long as that many good ones and those of the warm-up (h2load counts
    these bytes too, but logs no line for them; `warm_up` is its length as a share of what counts, and may have gone
    twice as fast), give or take one for each client: those of errors are not.
    """
    rows = [line.split("\t") for line in log.splitlines()]
    good = {"200"}
    body = re.search(r"\((\d+)\) data", printed)
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
        plan_path, rows_path = Path(folder) / "plan", Path(folder) / "rows"
        plan_path.write_bytes(pickle.dumps(plan))
        command = [sys.executable, "-m", "benchmarks.client", str(plan_path), str(rows_path)]
        _run([command], limit_seconds)
        if not rows_path.exists():
            raise LoadFailed("the Python generator wrote no rows")
        outcomes = pickle.loads(rows_path.read_bytes())  # noqa: S301 - written by our own child
    assert isinstance(outcomes, Outcomes)
    return outcomes


def _run(commands: Sequence[Sequence[str]], limit_seconds: float) -> tuple[list[str], float]:
    """Run side by side to their ends; what each printed, and CPU seconds of all. Raises `LoadFailed`."""
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    before = os.times()
    printed = []
    try:
        for process in processes:
            said, _ = process.communicate(timeout=limit_seconds)
            if process.returncode != 0:
                raise LoadFailed(f"{process.args!r} ended with {process.returncode}\n{said[-2000:]}")
            printed.append(said)
    except subprocess.TimeoutExpired as error:
        raise LoadFailed(f"the generator did not end within {limit_seconds:.0f} s") from error
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return printed, spent
