import pytest

from benchmarks import overload, results, serving_report
from benchmarks.figures import Spread
from benchmarks.machine import describe
from benchmarks.options import make_console
from benchmarks.serving_results import ServingResult
from benchmarks.systems import names

HALF = Spread(median=0.5, low=0.25, high=0.75, rounds=3)
PEERS = names()[1:]
MODEL = "mobilevit_xxs_classify"


def test_the_table_of_serving_is_complete_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    head = results.Head("serving", describe(), {}, complete=True)
    result = ServingResult(
        head=head,
        generator="h2load",
        participants=[],
        limits=[],
        tried=[],
        limit_turns=[],
        turns=[],
        ratio_to_limit={f"{MODEL}/128": HALF},
        ratio_to_torchscript={f"{MODEL}/128": HALF},
        ratio_to_peer={f"{MODEL}/128": dict.fromkeys(PEERS, HALF)},
        peer_ratio_to_limit={},
        peer_ratio_to_torchscript={},
        limit_to_torchscript={},
        added_ms={},
    )

    serving_report.show(result, make_console())

    shown = capsys.readouterr().err
    assert f"{MODEL}/128" in shown
    assert "…" not in shown


def test_the_table_of_overload_is_complete_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    points = [
        results.LoadPoint(
            round=1,
            system=system,
            model=MODEL,
            load=2.0,
            capacity_per_second=(100.0, 100.0),
            offered_per_second=200.0,
            seconds=8.0,
            sent=16_000,
            answered=8_000,
            refused=8_000,
            missed=0,
            failed=0,
            adds_up=True,
            goodput_per_second=50.0,
            goodput_over_capacity=0.5,
            p50_ms=100.0,
            p99_ms=199.0,
            generator_lag_p99_ms=1.0,
            generator_cpu_share=0.1,
        )
        for system in names()
    ]
    result = results.OverloadResult(
        head=results.Head("overload", describe(), {}, complete=True),
        deadline_ms=200.0,
        trace_seed=1,
        participants=[],
        points=points,
        goodput_over_capacity={system: {"2": HALF} for system in names()},
    )

    overload.show(result, make_console())

    shown = capsys.readouterr().err
    assert all(system in shown for system in names())
    assert "…" not in shown
