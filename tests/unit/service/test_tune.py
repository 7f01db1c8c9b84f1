import tomllib

import pytest

from service.allocation import Machine
from service.settings import load
from service.tune import candidates, plot
from service.tune.candidates import Candidate, settings_file, shapes
from service.tune.points import Point, best, front

GIB = 2**30
SOME = Candidate(2, 1, 4)


def point(per_second, p99_ms, clients=1):
    return Point(SOME, clients, per_second, p99_ms / 2, p99_ms)


def test_the_front_is_what_nothing_beats_in_both():
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
    ("gpus", "has", "fast", "dtypes"),
    [
        (0, False, False, []),
        (0, True, False, ["bfloat16"]),
        (0, True, True, ["float32"]),
        (1, False, False, ["bfloat16"]),
    ],
)
def test_other_number_types_are_those_the_hardware_computes(gpus, has, fast, dtypes):
    others = candidates.other_dtypes(SOME, Machine(2, GIB, gpus), has_bfloat16=has, fast_bfloat16=fast)
    assert [other.dtype for other in others] == dtypes


def test_serve_reads_what_is_written(tmp_path):
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
    plot.draw(tmp_path / "plot.png", [point(10, 5), point(40, 9, 4)], title="model", goal_ms=8)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_plot_says_what_to_install(monkeypatch):
    monkeypatch.setattr(plot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(plot.PlotUnavailable, match=r"mobilevision\[plot\].*--no-plot"):
        plot.require()
