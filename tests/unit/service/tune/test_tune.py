import json
import tomllib

import pytest
from fakes import toy_card

from service.core.allocation import Machine
from service.core.settings import load
from service.tune import candidates, plot, report
from service.tune.candidates import Candidate, settings_file, shapes
from service.tune.points import Point, Refused, best, front
from service.tune.sweep import SweepPlan

GIB = 2**30
SOME = Candidate(2, 1, 4)
REFUSED = Refused(Candidate(2, 1, 4, "openvino", "bfloat16"), "torchscript/bfloat16")


def point(per_second, p99_ms, clients=1):
    return Point(SOME, clients, per_second, p99_ms / 2, p99_ms, "torchscript/bfloat16")


def test_the_front_holds_the_points_that_no_other_beats_in_both():
    kept = [point(10, 5), point(40, 9), point(80, 30)]
    beaten = [point(9, 6), point(10, 7), point(40, 10), point(39, 9), point(79, 90)]
    assert front(beaten + kept[::-1]) == kept
    assert front([]) == []


def test_the_best_is_the_most_pictures_within_the_goal():
    points = [point(10, 5), point(40, 9), point(80, 30), point(40, 8)]
    assert best(points, 29.9) == point(40, 8)
    assert best(points, 30) == point(80, 30)
    assert best(points, 4) is None


@pytest.mark.parametrize(
    ("cores", "memory_gib", "gpus", "expected"),
    [
        (1, 4, 0, ((1, 1),)),
        (2, 24, 0, ((2, 1), (1, 2))),
        (4, 24, 0, ((4, 1), (2, 2), (1, 4))),
        (16, 64, 0, ((16, 1), (8, 2), (4, 4), (1, 16))),
        (16, 5, 0, ((5, 3), (4, 4), (1, 16))),
        (16, 64, 2, ((6, 2), (4, 4), (2, 8))),
    ],
)
def test_shapes_use_the_whole_machine_and_fit_in_memory(cores, memory_gib, gpus, expected):
    assert shapes(Machine(cores, memory_gib * GIB, gpus)) == expected


def test_batches_stay_within_the_archive():
    machine = Machine(1, 4 * GIB, 0)
    tried = candidates.first(machine, card_max_batch=2, quick=False)
    assert tried == (Candidate(1, 1, 1), Candidate(1, 1, 2))
    assert candidates.first(machine, card_max_batch=64, quick=True) == (Candidate(1, 1, 8),)


@pytest.mark.parametrize(
    ("gpus", "openvino", "bfloat16", "used", "expected"),
    [
        (0, False, False, "torchscript/float32", []),
        (0, False, True, "torchscript/float32", ["torchscript/bfloat16"]),
        (0, False, True, "torchscript/bfloat16", ["torchscript/float32"]),
        (0, True, False, "openvino/float32", ["torchscript/float32"]),
        (0, True, True, "openvino/bfloat16", ["openvino/float32", "torchscript/float32", "torchscript/bfloat16"]),
        (1, True, True, "torchscript/float16", ["torchscript/bfloat16"]),
    ],
)
def test_other_engines_and_number_types_are_those_that_could_serve(gpus, openvino, bfloat16, used, expected):
    others = list(
        candidates.other_engines(SOME, used, Machine(2, GIB, gpus), has_openvino=openvino, has_bfloat16=bfloat16)
    )
    assert [f"{other.engine}/{other.dtype}" for other in others] == expected
    assert {(other.workers_per_model, other.worker_threads, other.max_batch) for other in others} <= {(2, 1, 4)}


@pytest.mark.parametrize(
    ("engine", "dtype", "computed_by", "served"),
    [
        ("auto", "auto", "", True),
        ("auto", "auto", "openvino/float32", True),
        ("openvino", "float32", "openvino/float32", True),
        ("openvino", "float32", "torchscript/float32", False),
        ("auto", "bfloat16", "openvino/float32", False),
        ("openvino", "float32", "", False),
    ],
)
def test_a_candidate_is_served_only_by_what_it_asks_for(engine, dtype, computed_by, served):
    assert Candidate(2, 1, 4, engine, dtype).is_served_by(computed_by) is served


def test_serve_reads_the_settings_file(tmp_path):
    file = tmp_path / "model.toml"
    values = {"models": ["a_model"], "archives": str(tmp_path), **SOME.settings()}
    file.write_text(settings_file(values, ["how it was found"]))
    assert tomllib.loads(file.read_text()) == values
    settings = load(file)
    assert (settings.models, settings.archives) == (("a_model",), tmp_path)
    assert (settings.workers_per_model, settings.worker_threads, settings.max_batch) == (2, 1, 4)


def test_the_plot_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    plot.require()
    plot.draw(tmp_path / "plot.png", [point(10, 5), point(40, 9, 4)], [REFUSED], title="model", goal_ms=8)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_plot_says_what_to_install(monkeypatch):
    monkeypatch.setattr(plot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(plot.PlotUnavailable, match=r"mobilevision\[plot\].*--no-plot"):
        plot.require()


def test_the_table_fits_a_narrow_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    machine = Machine(2, 4 * GIB, 0)
    plan = SweepPlan(toy_card(), tmp_path, b"", machine, 8, (1, 16), 1.0, quick=False, folder=tmp_path)
    report.show(plan, [point(10, 5), point(40, 7.5, 4), point(1000.5, 99.5, 16)], [REFUSED])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines]
    used = "torchscript/bfloat16"
    assert ["2", "1", "4", used, "1", "10.0", "2.5", "5.0", "met"] in rows
    assert ["2", "1", "4", used, "4", "40.0", "3.8", "7.5", "best"] in rows
    assert ["2", "1", "4", used, "16", "1000.5", "49.8", "99.5", "missed"] in rows
    assert rows[2] == ["workers", "threads", "batch", "engine", "clients", "pictures/s", "ms", "ms", "goal"]
    assert lines[-1] == "refused by the workers: 2 workers x 1 threads, batch 4, openvino/bfloat16"


def test_the_report_of_a_goal_that_is_missed_still_has_the_fastest_setting(tmp_path):
    plan = SweepPlan(toy_card(), tmp_path, b"", Machine(2, GIB, 0), 1, (1,), 1.0, quick=False, folder=tmp_path)
    report.write(plan, [point(40, 9), point(10, 5)], [REFUSED], tmp_path / "out", draw_plot=False)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["toy_classify.json", "toy_classify.toml"]
    text = (tmp_path / "out" / "toy_classify.toml").read_text()
    written = tomllib.loads(text)
    assert (written["models"], written["max_batch"]) == (["toy_classify"], SOME.max_batch)
    assert (written["engine"], written["dtype"]) == ("auto", "auto")
    assert "# computed by torchscript/bfloat16\n# refused by the workers: openvino/bfloat16\n" in text
    found = json.loads((tmp_path / "out" / "toy_classify.json").read_text())
    assert found["points"][0]["computed_by"] == "torchscript/bfloat16"
    (refused,) = found["refused"]
    assert (refused["candidate"]["engine"], refused["computed_by"]) == ("openvino", "torchscript/bfloat16")
