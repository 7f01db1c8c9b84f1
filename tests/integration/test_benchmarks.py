"""Every benchmark as its reader runs it, with settings of seconds: it ends, its file is whole, its counts add up."""

import subprocess
import sys

import pytest
from pydantic import TypeAdapter
from serving import ROOT

from benchmarks import results

pytestmark = [pytest.mark.integration, pytest.mark.exhaustive, pytest.mark.timeout(900)]

MODEL = "mobilevit_xxs_classify"


def run(name, archives, out, kind, *options, status=0):
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--model", MODEL, "--archives", str(archives)]
    done = subprocess.run(
        [*command, "--out", str(out), *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    result = TypeAdapter(kind).validate_json((out / f"{name}.json").read_bytes())
    assert result.head.complete
    return result


def test_serving(archives, tmp_path):
    result = run(
        "serving",
        archives,
        tmp_path,
        results.ServingResult,
        "--peers",
        "torchserve_alone",
        "--seconds",
        "1",
        "--clients",
        "4",
    )
    case = f"{MODEL}/4"
    assert [one.error for one in result.participants] == [None, None]
    assert all(one.agrees_with_ours for one in result.participants)
    assert 0 < result.ratio_to_limit[case].median < 2
    assert result.ratio_to_peer[case]["torchserve_alone"].median > 0
    assert all(turn.failed == 0 and turn.answered > 0 and turn.server_cpu_ms_per_picture > 0 for turn in result.turns)


def test_overload(archives, tmp_path):
    options = ("--peers", "--loads", "0.5", "2", "--seconds", "2", "--rounds", "1")
    result = run("overload", archives, tmp_path, results.OverloadResult, *options)
    assert [point.load for point in result.points] == [0.5, 2.0]
    assert all(point.adds_up and point.failed == 0 for point in result.points)
    assert (tmp_path / "trace.json").exists()


def test_soak(archives, tmp_path):
    # Seconds after the start memory still grows; here only the machinery is tried.
    options = ("--minutes", "0.1", "--every", "0.5", "--warm-up", "1", "--bound-mib-per-hour", "1e9")
    result = run("soak", archives, tmp_path, results.SoakResult, *options)
    assert result.adds_up
    assert {"java", "python"} <= {one.name for one in result.processes}


def test_startup(archives, tmp_path):
    result = run("startup", archives, tmp_path, results.StartupResult, "--peers", "--rest", "0.5")
    (start,) = result.starts
    assert start.seconds_to_first_answer > 0
    assert start.idle_pss_mib > 50
    assert all((image.mib is None) != (image.skipped is None) for image in result.images)


def test_scaling(archives, tmp_path):
    options = ("--dimensions", "batch", "models", "--batches", "1", "--copies", "2", "--seconds", "1", "--clients", "2")
    result = run("scaling", archives, tmp_path, results.ScalingResult, *options)
    assert [(point.dimension, point.value) for point in result.points] == [("batch", 1), ("models loaded", 2)]
    assert all(point.per_second and point.cpu_ms_per_picture for point in result.points)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 without asking")
def test_rolling(archives, tmp_path):
    result = run("rolling", archives, tmp_path, results.RollingResult)  # its status says that no call was lost
    assert result.replacements >= 2
    assert result.sent == result.answered == sum(result.answered_by_version.values())
