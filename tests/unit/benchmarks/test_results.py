"""Result files can be read again as typed values, and contain the right ratios and medians."""

import dataclasses
import json
import math

import pytest
from pydantic import TypeAdapter

from benchmarks import results, serving_results
from benchmarks.figures import Spread
from benchmarks.limit import Shape, Throughput
from benchmarks.machine import describe
from benchmarks.outcomes import Outcome
from benchmarks.overload import _Measured as MeasuredOverload
from benchmarks.pairs import AUTO, REFERENCE, Pair
from benchmarks.scaling import Reference
from benchmarks.scaling import _Measured as MeasuredScaling
from benchmarks.serving import candidates
from benchmarks.serving_record import ServingRecord

HEAD = results.Head("test", describe(), {"seconds": "1"}, complete=False)


def turn(number, system, per_second, clients=8):
    return serving_results.Turn(number, system, "toy", clients, 10, 0, per_second, 1.0, 2.0, 3.0, 0.1, 100.0, 200.0)


def read(path, kind):
    return TypeAdapter(kind).validate_json(path.read_bytes(), strict=False)


def test_serving_divides_each_turn_by_the_limit_around_it(tmp_path):
    measured = ServingRecord(HEAD, "h2load")
    for number, speed in ((1, 1.0), (2, 0.5), (3, 1.0)):
        for system, drift, rate in (("mobilevision", 1.0, 180.0), ("mosec", 0.8, 150.0)):
            found = turn(number, system, rate * speed * drift)
            measured.turns.append(dataclasses.replace(found, limit_per_second=200.0 * speed * drift))
    measured.turns.append(turn(4, "mobilevision", 1.0))  # a run that was cut short: no limit after this turn
    result = measured.result(complete=True)
    assert result.ratio_to_limit["toy/8"].median == pytest.approx(0.9)
    assert result.ratio_to_limit["toy/8"].rounds == 3
    assert result.ratio_to_peer["toy/8"]["mosec"].median == pytest.approx(1.2)
    assert result.peer_ratio_to_limit["toy/8"]["mosec"].median == pytest.approx(0.75)
    results.write(tmp_path / "serving.json", result)
    again = read(tmp_path / "serving.json", serving_results.ServingResult)
    assert again.head.complete
    assert again.head.machine.cores >= 1
    assert again.turns == result.turns


def limit_turn(number, per_second, pair, clients=8):
    return serving_results.LimitTurn(number, clients, "toy", "2x1", 8, per_second, 10.0, pair.engine, pair.dtype)


def test_torchscript_in_process_is_compared_through_the_limit_beside_it():
    """The machine is half as fast at the end of the round, so that neither mean alone would do."""
    fastest = Pair("openvino", "bfloat16")
    measured = ServingRecord(HEAD, "h2load")
    measured.limit_turns += [
        limit_turn(1, 100.0, REFERENCE),
        limit_turn(1, 200.0, fastest),
        limit_turn(1, 999.0, fastest),  # between two servers: no turn of the reference is beside it
        limit_turn(1, 100.0, fastest),
        limit_turn(1, 50.0, REFERENCE),
    ]
    measured.turns += [
        dataclasses.replace(turn(1, "mobilevision", 180.0), limit_per_second=200.0),
        dataclasses.replace(turn(1, "mosec", 100.0), limit_per_second=125.0),
    ]
    result = measured.result(complete=True)
    assert result.limit_to_torchscript["toy/8"].median == pytest.approx(2.0)
    assert result.ratio_to_torchscript["toy/8"].median == pytest.approx(1.8)
    assert result.peer_ratio_to_torchscript["toy/8"]["mosec"].median == pytest.approx(1.6)
    assert result.ratio_to_limit["toy/8"].median == pytest.approx(0.9)


def test_the_limit_may_be_torchscript_itself():
    measured = ServingRecord(HEAD, "h2load")
    measured.limit_turns += [limit_turn(1, 100.0, REFERENCE), limit_turn(1, 90.0, REFERENCE)]
    measured.turns.append(dataclasses.replace(turn(1, "mobilevision", 76.0), limit_per_second=95.0))
    result = measured.result(complete=True)
    assert result.limit_to_torchscript["toy/8"].median == 1.0
    assert result.ratio_to_torchscript["toy/8"].median == pytest.approx(0.8)


def test_a_round_that_was_cut_short_counts_what_was_measured_beside_each_other():
    fastest = Pair("openvino", "float32")
    measured = ServingRecord(HEAD, "h2load")
    measured.limit_turns += [
        limit_turn(1, 100.0, REFERENCE),
        limit_turn(1, 150.0, fastest),
        limit_turn(1, 300.0, fastest),
    ]
    measured.limit_turns.append(limit_turn(2, 100.0, REFERENCE))
    measured.turns.append(dataclasses.replace(turn(1, "mobilevision", 90.0), limit_per_second=225.0))
    gain = measured.result(complete=False).limit_to_torchscript["toy/8"]
    assert (gain.median, gain.rounds) == (1.5, 1)


def test_without_the_reference_nothing_is_relative_to_it():
    measured = ServingRecord(HEAD, "h2load")
    measured.limit_turns.append(limit_turn(1, 100.0, Pair("torchscript", "float16")))
    measured.turns.append(dataclasses.replace(turn(1, "mobilevision", 90.0), limit_per_second=100.0))
    result = measured.result(complete=True)
    assert result.ratio_to_torchscript == result.limit_to_torchscript == {}
    assert result.ratio_to_limit["toy/8"].median == pytest.approx(0.9)


def test_added_latency_is_taken_from_turns_with_one_client():
    measured = ServingRecord(HEAD, "h2load")
    for number, per_second in ((1, 25.0), (2, 20.0), (3, 40.0)):
        alone = turn(number, "mobilevision", per_second, clients=1)
        many = turn(number, "mobilevision", 100.0)
        measured.turns += [dataclasses.replace(one, limit_per_second=50.0) for one in (alone, many)]
    assert measured.result(complete=True).added_ms == {"toy": {"mobilevision": Spread(20.0, 5.0, 30.0, 3)}}


def test_a_run_without_turns_still_writes_a_file(tmp_path):
    result = ServingRecord(HEAD, "h2load").result(complete=False)
    results.write(tmp_path / "serving.json", result)
    assert not read(tmp_path / "serving.json", serving_results.ServingResult).head.complete


def test_overload_is_the_median_over_rounds_by_system_and_load(tmp_path):
    measured = MeasuredOverload(HEAD, 200.0, 1)
    for number, goodput in ((1, 0.9), (2, 0.2), (3, 0.8)):
        for load in (2.0, 0.5):
            figures = (1.0, 1.0, 1, 1, 0, 0, 0, True, 1.0, goodput * load, 1.0, 1.0, 0.1, 0.2)
            point = results.LoadPoint(number, "mobilevision", "toy", load, (2.0, 2.0), *figures)
            measured.points.append(point)
    results.write(tmp_path / "overload.json", measured.result(complete=True))
    again = read(tmp_path / "overload.json", results.OverloadResult).goodput_over_capacity["mobilevision"]
    assert list(again) == ["0.5", "2"]
    assert again["2"] == Spread(median=1.6, low=0.4, high=1.8, rounds=3)


def test_scaling_reports_medians_at_each_value():
    measured = MeasuredScaling(HEAD, "toy")
    measured.points = [results.ScalingPoint("batch", 8, share_of_limit=value) for value in (1.0, 9.0, 2.0)]
    measured.points.append(results.ScalingPoint("models loaded", 2, share_of_limit=0.5, pss_mib=700.0))
    batch, models = measured.result(complete=True).points
    assert (batch.share_of_limit, batch.pss_mib) == (2.0, None)
    assert (models.value, models.share_of_limit, models.pss_mib) == (2, 0.5, 700.0)


def test_scaling_divides_a_point_by_the_limit_before_and_after_it():
    """The machine slows down to half its speed during the point. The share stays the same."""

    speeds = iter((100.0, 50.0))

    class Slowing:
        def measure(self, batch, seconds):
            speed = next(speeds)
            return Throughput(REFERENCE, Shape(2, 1), batch, speed, cpu_ms_per_picture=2000 / speed)

    point = Reference(Slowing(), 1.0).beside(results.ScalingPoint("batch", 8, per_second=75.0, cpu_ms_per_picture=60.0))
    assert (point.share_of_limit, point.cost_over_limit) == (1.0, 2.0)


def test_nan_and_infinity_become_null(tmp_path):
    point = results.ScalingPoint("batch", 1, per_second=math.nan, p99_ms=math.inf, pss_mib=1 / 3)
    results.write(tmp_path / "point.json", point)
    content = json.loads((tmp_path / "point.json").read_text())
    assert (content["per_second"], content["p99_ms"], content["pss_mib"]) == (None, None, 0.333333)


def test_peers_have_at_least_as_many_set_ups_as_our_server():
    assert len(candidates("mosec", quick=False)) >= len(candidates("mobilevision", quick=False))
    (chosen,) = candidates("mobilevision", quick=True, settings=["cuda_graphs=false", "A=b=c"])
    assert chosen.settings == (("CUDA_GRAPHS", "false"), ("A", "b=c"))
    assert {setup.pair for setup in candidates("mosec", quick=False)} == {AUTO}
    asked = Pair("openvino", "float32")
    assert {
        setup.pair for name in ("mobilevision", "mosec") for setup in candidates(name, quick=False, pair=asked)
    } == {asked}
    assert len(candidates("mosec", quick=True)) == len(candidates("mobilevision", quick=True)) == 1


def test_a_load_point_has_a_count_for_every_outcome():
    assert set(Outcome) <= set(results.LoadPoint.__dataclass_fields__)
