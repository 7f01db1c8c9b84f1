"""How `benchmarks.hold` counts: a call is of one kind, a row holds or not, a section that failed is told."""

import dataclasses
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks.hold import attacks, record, report, toy
from benchmarks.hold.__main__ import SECTIONS, run_sections
from benchmarks.hold.calls import Call, Kind, Load, bad_seconds, judge_answer, judge_error, wait_for_recovery
from benchmarks.hold.fuzz.targets import TARGETS
from benchmarks.hold.http2 import Answer
from benchmarks.hold.memory_limit import memory_limit
from benchmarks.hold.section import Budget, Row, Section
from benchmarks.hold.sections.faults import Measured
from benchmarks.hold.sections.fuzz_inputs import START_SECONDS, seconds_of
from benchmarks.hold.sections.same_answers import row_of
from benchmarks.hold.sections.soak import drift, growth
from benchmarks.hold.server import Holdings, Leaks, leaks, role_of
from benchmarks.hold.stopping import Stop, Stops
from benchmarks.machine import ROOT, describe
from benchmarks.soak import Sample
from service.pb.mobilevision.v1 import vision_pb2

NOTHING = Leaks(0, 0, 0, 0)
QUIET = Console(quiet=True)


def test_an_answer_is_right_only_bit_by_bit() -> None:
    question = toy.questions(1)[0]
    reply = vision_pb2.ClassifyResponse.FromString(question.expected)
    reply.model.version = "1.1"  # any version may answer
    assert judge_answer(reply.SerializeToString(), question.expected) is Kind.RIGHT
    reply.labels[0].score += 1e-6
    assert judge_answer(reply.SerializeToString(), question.expected) is Kind.WRONG
    assert judge_answer(b"\xff", question.expected) is Kind.WRONG


@pytest.mark.parametrize(
    ("code", "details", "reason", "late_seconds", "kind"),
    [
        ("INTERNAL", "", "BACKEND_FAULT", 0.0, Kind.TYPED),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", "", 0.1, Kind.TYPED),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", "", 5.0, Kind.LOST),
        ("UNAVAILABLE", "failed to connect to all addresses", "", 0.0, Kind.NOT_SENT),
        ("UNAVAILABLE", "Socket closed", "", 0.0, Kind.CUT),
        ("CANCELLED", "CANCELLED", "", 0.0, Kind.LOST),
        ("UNKNOWN", "", "", 0.0, Kind.LOST),
    ],
)
def test_an_error_without_a_reason_is_lost(
    code: str, details: str, reason: str, late_seconds: float, kind: Kind
) -> None:
    assert judge_error(code, details, reason, late_seconds)[0] is kind


def test_the_toy_answers_the_same_in_every_place_of_a_batch() -> None:
    pixels = torch.randint(0, 250, (16, toy.SIDE_PX, toy.SIDE_PX, 3), dtype=torch.uint8)
    alone = [toy.Toy()(one[None]) for one in pixels]
    for shift in range(16):
        scores, labels = toy.Toy()(pixels.roll(shift, 0))
        for place in range(16):
            assert torch.equal(scores[place], alone[place - shift][0][0])
            assert torch.equal(labels[place], alone[place - shift][1][0])


def calls(*kinds: Kind, every_seconds: float = 1.0) -> list[Call]:
    return [Call(number * every_seconds, number * every_seconds, kind) for number, kind in enumerate(kinds)]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def recovery(found: list[Call], limit_seconds: float = 30.0) -> float | None:
    clock = Clock()
    load = Load("nowhere", (), per_second=1)

    def since(begin_at: float, end_at: float = float("inf")) -> list[Call]:
        sent = [one for one in found if begin_at <= one.sent_at <= clock.now]
        return [one for one in sent if one.ended_at is not None] + [one for one in sent if one.ended_at is None]

    load.since = since  # type: ignore[method-assign]
    return wait_for_recovery(
        load, 0.0, quiet_seconds=3.0, limit_seconds=limit_seconds, clock=lambda: clock.now, sleep=clock.sleep
    )


def test_recovery_ends_with_the_last_call_that_was_not_right() -> None:
    right, typed = Kind.RIGHT, Kind.TYPED
    assert recovery(calls(*[right] * 20)) == 0.0
    assert recovery(calls(right, typed, right, typed, *[right] * 20)) == 3.0
    assert recovery(calls(*[typed] * 60), limit_seconds=20.0) is None


def test_a_call_that_does_not_end_is_no_recovery() -> None:
    found = calls(*[Kind.RIGHT] * 60)
    assert recovery([Call(2.0), *found[3:]], limit_seconds=20.0) is None


def test_a_row_of_a_fault_holds_only_if_nothing_is_lost_wrong_or_leaked_and_in_time() -> None:
    good = Measured("fault", Counter({Kind.RIGHT: 9, Kind.TYPED: 1}), 4.0, 10.0, NOTHING)
    assert good.held
    assert good.row() == Row(("fault", "10", "9", "1", "0", "0", "0", "0.0 s", "4.0 s", "0", "yes"), held=True)
    for changes in (
        {"by_kind": Counter({Kind.LOST: 1})},
        {"by_kind": Counter({Kind.WRONG: 1})},
        {"by_kind": Counter({Kind.NOT_SENT: 1})},
        {"by_kind": Counter({Kind.CUT: 1})},
        {"recovered_seconds": 10.1},
        {"recovered_seconds": None},
        {"leaked": Leaks(0, 1, 0, 0)},
        {"leaked": Leaks(0, 0, 0, 0, connections=1)},
        {"noticed_seconds": 10.1, "bound_seconds": 45.0},
        {"problem": "it"},
    ):
        assert not dataclasses.replace(good, **changes).held, changes  # type: ignore[arg-type]
    assert dataclasses.replace(good, by_kind=Counter({Kind.CUT: 1}), cuts_allowed=True).held


def test_missing_and_left_over_processes_are_leaks() -> None:
    before = Holdings(Counter(worker=2, jvm=1), descriptors=40, slots=0, folders=2)
    assert leaks(before, before).none
    after = Holdings(Counter(worker=1, jvm=2), descriptors=43, slots=1, folders=3)
    assert leaks(before, after) == Leaks(processes=2, descriptors=3, slots=1, folders=1)
    assert leaks(before, dataclasses.replace(before, descriptors=30)).none
    connected = dataclasses.replace(before, connections=2)
    assert leaks(connected, dataclasses.replace(before, connections=1)) == Leaks(0, 0, 0, 0, connections=1)


def test_roles_of_processes() -> None:
    assert role_of(["python", "-m", "service", "serve", "toy"]) == "gateway"
    assert role_of(["/jdk/bin/java", "-jar"]) == "jvm"
    assert role_of(["python", "-c", "x", "gateway-process", "0"]) == "replica"
    assert role_of(["python", "/ts/model_service_worker.py"]) == "worker"
    assert role_of(["python", "process_guard.py", "java"]) == "guard"
    assert role_of([]) == "other"


def test_a_stop_that_cuts_a_call_does_not_count() -> None:
    good = Stop(Counter({Kind.RIGHT: 5, Kind.TYPED: 2, Kind.NOT_SENT: 3}), 2.0, 0, 0, 0)
    stops = Stops("SIGTERM", 2, [good, good])
    assert stops.row().cells[:4] == ("SIGTERM: 2 of 2 lost nothing", "20", "10", "10")
    assert stops.row().held
    for changes in ({"by_kind": Counter({Kind.RIGHT: 5, Kind.CUT: 1})}, {"status": 1}, {"processes_left": 1}):
        assert not Stops("SIGTERM", 2, [good, dataclasses.replace(good, **changes)]).row().held  # type: ignore[arg-type]
    assert not Stops("SIGTERM", 3, [good, good]).row().held


def test_a_wrong_answer_fails_the_row_of_same_answers() -> None:
    assert row_of("alone", calls(Kind.RIGHT), faults=False).held
    assert not row_of("alone", [], faults=False).held
    assert not row_of("alone", calls(Kind.RIGHT, Kind.TYPED), faults=False).held
    assert row_of("faults", calls(Kind.RIGHT, Kind.TYPED), faults=True).held
    assert not row_of("faults", calls(Kind.RIGHT, Kind.WRONG), faults=True).held


def test_growth_and_drift_are_bounded() -> None:
    def samples(mib_per_hour: float, descriptors_per_hour: int) -> list[Sample]:
        return [
            Sample(
                second * 60.0,
                {(1, "service"): 100 + mib_per_hour * second / 60},
                {(1, "service"): 40 + descriptors_per_hour * second // 60},
                {(1, "service"): 10},
            )
            for second in range(61)
        ]

    assert [row.held for row in growth(samples(5, 0), {1}, short=False)] == [True, True, True]
    assert [row.held for row in growth(samples(100, 60), {1}, short=False)] == [False, False, True]
    fast, slow = Call(0.0, 0.01, Kind.RIGHT), Call(0.0, 1.0, Kind.RIGHT)
    assert drift([fast] * 30).held
    assert not drift([fast] * 20 + [slow] * 10).held


def section_of(name: str, *, held: bool) -> Section:
    return Section(name, name.title(), "text", ("what", "held"), (Row(("it", "yes" if held else "NO"), held),))


def find(name: str):
    def run(budget: Budget) -> Section:
        budget.progress("working")
        if name == "fuzz_wire":
            raise KeyboardInterrupt
        return section_of(name, held=name != "attackers")

    if name == "soak":
        raise ModuleNotFoundError("no module soak")
    return run


def run_some(folder: Path, *names: str) -> bool:
    return run_sections(names, full=False, out=folder, page=folder / "page.md", console=QUIET, find=find)


def test_sections_are_written_and_kept(tmp_path: Path) -> None:
    assert run_some(tmp_path, "faults")
    assert not run_some(tmp_path, "attackers")
    assert not run_some(tmp_path, "soak"), "a section that cannot be measured has not held"
    found = record.read(tmp_path)
    assert [(name, one.held) for name, one in found.items()] == [
        ("faults", True),
        ("attackers", False),
        ("soak", False),
    ]
    page = (tmp_path / "page.md").read_text()
    assert page == report.page(found)
    assert "## Faults" in page
    assert "was not measured: ModuleNotFoundError: no module soak" in page


def test_an_interrupt_keeps_what_has_ended(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_some(tmp_path, "faults", "fuzz_wire", "soak")
    assert list(record.read(tmp_path)) == ["faults"]


def test_the_readme_gets_three_figures_once_both_sections_are_measured() -> None:
    def measured(name: str, columns: tuple[str, ...], *cells: str) -> record.Record:
        section = Section(name, name, "", columns, (Row(cells, held=True),))
        return record.Record(section, describe(), "make hold", 1.0)

    columns = ("fault", "sent", "right", "typed errors", "cut", "lost", "wrong")
    faults = measured("faults", columns, "worker killed", "1200", "1190", "9", "0", "1", "0")
    same = measured("same_answers", ("how", "right", "wrong or lost"), "alone", "2000", "0")
    readme = f"before\n{report.MARK}\nlast week\n{report.MARK}\nafter"
    assert report.with_summary(readme, {"faults": faults}) == readme
    found = report.with_summary(readme, {"faults": faults, "same_answers": same})
    assert "Under 1 faults, 1,200 calls were sent: 1 were lost. 0 got a wrong answer. 2,000 answers" in found
    assert "last week" not in found
    assert report.with_summary(found, {"faults": faults, "same_answers": same}) == found


def test_what_callers_noticed_is_from_the_first_to_the_last_call_that_was_not_right() -> None:
    assert bad_seconds(calls(Kind.RIGHT, Kind.RIGHT)) == 0.0
    assert bad_seconds(calls(Kind.RIGHT, Kind.TYPED, Kind.RIGHT, Kind.CUT, Kind.RIGHT)) == 2.0


@pytest.mark.parametrize(
    ("answer", "is_typed"),
    [
        (Answer(status=0), True),
        (Answer(status=4), True),
        (Answer(status=8, trailers={"grpc-status-details-bin": "x"}), True),
        (Answer(status=8), False),
        (Answer(status=1), False),
        (Answer(reset=7), False),
        (Answer(), False),
    ],
)
def test_a_call_of_a_burst_has_an_answer_or_a_reason(answer: Answer, is_typed: bool) -> None:
    assert attacks.typed(answer) is is_typed


def test_fuzzing_pictures_gets_to_its_mutations_in_the_short_form() -> None:
    seconds = {name: seconds_of(name, SECTIONS["fuzz_inputs"]) for name in TARGETS}
    assert seconds["decode"] == 15.0
    assert sum(seconds.values()) + START_SECONDS * len(TARGETS) == pytest.approx(SECTIONS["fuzz_inputs"])
    assert sum(SECTIONS.values()) < 600


def test_a_process_over_its_memory_limit_ends() -> None:
    grow = (
        "import sys; from benchmarks.hold.memory_limit import limit_this_process; limit_this_process(sys.argv[1]); "
        "print('limited', flush=True); held = bytearray(2**30); held[::4096] = bytes(2**18)"
    )
    with memory_limit(100 * 2**20) as (_, limit):
        done = subprocess.run([sys.executable, "-c", grow, limit], check=False, capture_output=True, cwd=ROOT)
    assert done.stdout == b"limited\n"
    assert done.returncode != 0
