"""Fuzzing over live sockets: a whole gateway, hostile messages and connections, honest calls in between."""

from benchmarks.hold.fuzz import wire
from benchmarks.hold.fuzz.target import MIB
from benchmarks.hold.section import Budget, Row, Section

_TEXT = """\
A gateway with toy models runs in a process of its own. Changed request messages, HTTP/2 connections and HTTP/1.1
requests are sent to its two ports. After each round an honest call and the probes must be answered ({rounds} rounds,
slowest {honest:.2f} s). Every log line was checked ({lines}): one JSON object each, without a traceback. The gateway
grew by {grown:.0f} MiB; its budget is {budget:.0f}. Repeat it: `python -m benchmarks.hold.fuzz wire --seconds 60`."""


def run(budget: Budget) -> Section:
    """Send hostile bytes for the time of the budget."""
    budget.progress("fuzzing the ports of a gateway")
    outcome = wire.fuzz(budget.seconds)
    for fault in outcome.faults:
        budget.progress(fault)
    rows = [
        Row(
            (kind, f"{outcome.inputs[kind]:,}", str(len(outcome.faults)), f"{outcome.slowest_seconds[kind]:.2f} s"),
            outcome.held,
        )
        for kind in wire.KINDS
    ]
    return Section(
        name="fuzz_wire",
        title="Connections that nobody should open",
        text=_TEXT.format(
            rounds=outcome.rounds, honest=outcome.slowest_honest_seconds, lines=f"{outcome.log_lines:,}",
            grown=outcome.grown_bytes / MIB, budget=wire.MEMORY_BYTES / MIB,
        ),
        columns=("kind", "inputs", "faults of the run", "slowest"),
        rows=tuple(rows),
    )  # fmt: skip
