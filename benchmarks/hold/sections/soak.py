"""A long mixed load: three tasks, good and bad pictures, roll-outs, clients that reconnect. Nothing may grow."""

import itertools
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.figures import percentile, slope
from benchmarks.hold import injections, toy
from benchmarks.hold.calls import Call, Kind, Load, counts
from benchmarks.hold.section import Budget, Row, Section
from benchmarks.hold.server import HoldServer, role_of, serving
from benchmarks.machine import ROOT
from benchmarks.soak import STEADY_FROM, Sample, Sampler, trend
from benchmarks.target import picture
from mobilevision.client import CallFailed, VisionClient
from service.serving.rollout_spec import Entry

MODELS = ("demo_classify", "demo_detect", "demo_segment")
SHORT_SECONDS, FULL_SECONDS = 45.0, 3600.0
CALLS_PER_SECOND = 20.0
MIXED_PER_SECOND = 4.0
CALLS_PER_CONNECTION = 20
WARM_UP_SECONDS = 5.0
ROLL_OUT_SECONDS = 20.0  # between two roll-outs
MIB_PER_HOUR = 30.0
SHORT_MIB = 24.0  # what a process may grow in the short form: caches fill and the JVM compiles, which is no leak
DESCRIPTORS, THREADS = 16, 8  # growth that connections of the moment explain
DRIFT, DRIFT_MS = 2.0, 50.0  # p99 of the last third against that of the first: at most twice, and this
COLUMNS = ("what", "at first", "at last", "growth per hour", "bound", "held")
_TEXT = """\
{seconds:.0f} s with four models: {rate:.0f} calls per second to the toy, whose answers are compared bit by bit;
about {mixed:.0f} calls per second to the three demo models, one in four with a bad picture; a new connection after
every {reconnect} calls; a roll-out every {roll:.0f} s. Growth is the least-squares slope after the first fifth of the
time. In the short form a slope means little, so the growth itself is bounded: by {short:.0f} MiB per process."""
_BAD_PICTURES = (b"", b"not a picture", b"\xff\xd8\xff\xe0broken", b"\x89PNG\r\n\x1a\n" + bytes(64))


class Mixed(threading.Thread):
    """Calls of all tasks with good and bad pictures, over connections that are made anew, until `stop`."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._end = threading.Event()
        self.outcomes: Counter[str] = Counter()

    def run(self) -> None:
        """Send the calls one after another."""
        good = picture()
        numbers = itertools.count()
        while not self._end.is_set():
            with VisionClient(self._address, timeout_seconds=10.0) as client:
                calls: tuple[Callable[..., object], ...] = (client.classify, client.detect, client.segment)
                for number in itertools.islice(numbers, CALLS_PER_CONNECTION):
                    bad = number % 4 == 3
                    image = _BAD_PICTURES[number // 4 % len(_BAD_PICTURES)] if bad else good
                    self.outcomes[self._call(calls[number % 3], MODELS[number % 3], image, bad=bad)] += 1
                    if self._end.wait(1 / MIXED_PER_SECOND):
                        return

    def stop(self) -> None:
        """End after the call in work."""
        self._end.set()
        self.join(60)

    @staticmethod
    def _call(call: Callable[..., object], model: str, image: bytes, *, bad: bool) -> str:
        try:
            call(image, model=model)
        except CallFailed as error:
            if not error.reason:
                return f"lost: {error}"
            if bad:
                return "typed" if error.reason.startswith("IMAGE_") else f"wrong: {error}"
            return f"refused: {error.reason}"
        return "wrong: a bad picture was answered" if bad else "right"


def run(budget: Budget) -> Section:
    """Load for less than a minute, or for an hour in the long form."""
    seconds = FULL_SECONDS if budget.full else SHORT_SECONDS
    with tempfile.TemporaryDirectory(prefix="hold-") as name:
        folder = Path(name)
        for one in ("shm", "run"):
            (folder / one).mkdir()
        budget.progress("building the demo models")
        archives = _archives(folder / "archives")
        models = (toy.NAME, *MODELS)
        with serving(archives, shm=folder / "shm", run=folder / "run", models=models) as server:
            rows = _soak(server, seconds, budget)
    text = _TEXT.format(
        seconds=seconds,
        rate=CALLS_PER_SECOND,
        mixed=MIXED_PER_SECOND,
        reconnect=CALLS_PER_CONNECTION,
        roll=ROLL_OUT_SECONDS,
        short=SHORT_MIB,
    )
    return Section("soak", "A long mixed load", text, COLUMNS, tuple(rows))


def _soak(server: HoldServer, seconds: float, budget: Budget) -> list[Row]:
    mixed, first = Mixed(server.grpc), Mixed(server.grpc)
    first.start()  # connections, threads and shared memory that the first calls make
    with Load(server.grpc, toy.questions(64), per_second=CALLS_PER_SECOND, deadline_seconds=5.0):
        time.sleep(WARM_UP_SECONDS)
    first.stop()
    time.sleep(1.0)
    before = server.holdings()
    with (
        Sampler(server.group, 2.0) as sampler,
        Load(server.grpc, toy.questions(64), per_second=CALLS_PER_SECOND, deadline_seconds=5.0) as load,
    ):
        mixed.start()
        began_at = time.monotonic()
        roll_outs = 0
        while (passed := time.monotonic() - began_at) < seconds:
            stable = ("1.1", "1.0")[roll_outs % 2]
            injections.want(server, Entry(stable=stable))
            roll_outs += 1
            budget.progress(
                f"{passed / 60:.0f} of {seconds / 60:.0f} min, {len(load.calls):,} calls, {roll_outs} roll-outs"
            )
            time.sleep(max(0.0, min(ROLL_OUT_SECONDS, began_at + seconds - time.monotonic())))
        mixed.stop()
    gateways = {pid for pid in server.group.members() if role_of(_command(pid)) in {"gateway", "replica"}}
    leaked = server.leaked_since(before, 30.0)
    return [
        *growth(sampler.samples, gateways, short=not budget.full),
        drift(load.calls),
        outcomes("calls to the toy", load.calls),
        _mixed_row(mixed.outcomes),
        Row(("leaks at the end", "0", str(leaked), "–", "0", _yes(leaked.none)), leaked.none),
    ]


def growth(samples: Sequence[Sample], gateways: set[int], *, short: bool) -> list[Row]:
    """Memory of every process that lived through, and descriptors and threads of the gateway."""
    rows = []
    for process in sorted({key for sample in samples for key in sample.mib}):
        found = trend(process, samples, bound_mib_per_hour=MIB_PER_HOUR)
        if found is None:
            continue
        grown = found.last_mib - found.first_mib
        held = grown <= SHORT_MIB if short else found.within_bound
        bound = f"{SHORT_MIB:.0f} MiB in all" if short else f"{MIB_PER_HOUR:.0f} MiB"
        per_hour = f"{found.slope_mib_per_hour:+.1f} MiB"
        name = f"memory of {found.name}"
        rows.append(
            Row((name, f"{found.first_mib:.1f} MiB", f"{found.last_mib:.1f} MiB", per_hour, bound, _yes(held)), held)
        )
    steady = [one for one in samples if one.seconds >= samples[-1].seconds * STEADY_FROM]
    hours = [one.seconds / 3600 for one in steady]
    for what, bound_count in (("descriptors", DESCRIPTORS), ("threads", THREADS)):
        values = [sum(n for (pid, _), n in getattr(one, what).items() if pid in gateways) for one in steady]
        per_hour_count = slope(hours, values)
        grown_count = per_hour_count * (hours[-1] - hours[0]) if hours else 0.0
        held = grown_count <= bound_count
        cells = (
            f"{what} of the gateway",
            str(values[0]),
            str(values[-1]),
            f"{per_hour_count:+.1f}",
            f"{bound_count} in all",
        )
        rows.append(Row((*cells, _yes(held)), held))
    return rows


def drift(calls: Sequence[Call]) -> Row:
    """p99 of the first third of the calls and of the last."""
    third = len(calls) // 3
    first, last = (
        percentile([(one.ended_at or one.sent_at) - one.sent_at for one in part if one.kind is Kind.RIGHT], 0.99) * 1e3
        for part in (calls[:third], calls[-third:])
    )
    held = last <= DRIFT * first + DRIFT_MS
    bound = f"{DRIFT:.0f} x the first + {DRIFT_MS:.0f} ms"
    return Row(("p99 of a call to the toy", f"{first:.0f} ms", f"{last:.0f} ms", "–", bound, _yes(held)), held)


def outcomes(name: str, calls: Sequence[Call]) -> Row:
    """All calls, and that none was lost or wrong."""
    found = counts(calls)
    bad = len(calls) - found[Kind.RIGHT] - found[Kind.TYPED]
    text = f"{found[Kind.RIGHT]:,} right, {found[Kind.TYPED]} typed errors, {bad} wrong or lost"
    return Row((name, f"{len(calls):,} sent", text, "–", "0 wrong or lost", _yes(not bad)), not bad)


def _mixed_row(found: Counter[str]) -> Row:
    bad = {why: count for why, count in found.items() if why.startswith(("wrong", "lost"))}
    refused = sum(count for why, count in found.items() if why.startswith("refused"))
    text = f"{found['right']:,} right, {found['typed']:,} bad pictures refused, {refused} other typed errors, "
    text += f"{sum(bad.values())} wrong or lost" + "".join(f" ({why})" for why in sorted(bad)[:2])
    held = not bad and found["right"] > 0
    return Row(("calls to the demo models", f"{found.total():,} sent", text, "–", "0 wrong or lost", _yes(held)), held)


def _archives(folder: Path) -> Path:
    """The demo models, built where they are missing, and two versions of the toy."""
    store = ROOT / "model_store" / "archives"
    command = [sys.executable, "-m", "service", "models", "build", *MODELS, "--out", str(store)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    toy.build_versions(folder)
    for model in MODELS:
        for path in (store / f"{model}.mar", store / f"{model}.card.json"):
            shutil.copy(path, folder)
    return folder


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _yes(held: bool) -> str:
    return "yes" if held else "NO"
