"""Which candidates a sweep measures, over servers and loads that are made up."""

import contextlib
import tomllib
from dataclasses import replace

import pytest
from fakes import toy_card

from handlers.contract.card import Agreement
from service.app.local_server import LocalServer
from service.core.allocation import Machine
from service.tune import sweep as module
from service.tune.candidates import Candidate
from service.tune.load import Load, LoadFailed
from service.tune.points import Refused
from service.tune.sweep import SweepPlan, sweep

AUTO = "openvino/bfloat16"  # what `auto` chooses here


@pytest.fixture
def plan(tmp_path):
    agrees = Agreement(metric="top1", pictures=1, agreement=1.0, score_max_abs_diff=0.0)
    card = toy_card().model_copy(update={"bfloat16": agrees, "max_batch": 1})
    return SweepPlan(card, tmp_path, b"", Machine(1, 2**32, 0), 100, (1, 2), 1.0, quick=False, folder=tmp_path)


class Servers:
    """Servers whose workers compute what their settings ask for, if they do not refuse it."""

    def __init__(self, monkeypatch, refused=()):
        self.refused = refused
        self.measured = []  # settings, clients, seconds
        self.fails = False
        monkeypatch.setattr(module, "serving", self.serving)
        monkeypatch.setattr(module, "measure", self.measure)
        monkeypatch.setattr(module, "openvino_installed", lambda: True)
        monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: True)

    @contextlib.contextmanager
    def serving(self, models, *, config, **options):
        settings = tomllib.loads(config.read_text())
        asked = f"{settings['engine']}/{settings['dtype']}"
        computed_by = AUTO if asked == "auto/auto" else asked
        self.computed_by = "torchscript/float32" if computed_by in self.refused else computed_by
        self.asked = asked
        yield LocalServer("host:1", "host:2", 1.0)

    def measure(self, server, model, task, image, *, clients, warm_seconds, seconds):
        if self.fails and self.asked != "auto/auto":
            raise LoadFailed("its workers do not compute alike")
        self.measured.append((self.asked, clients, seconds))
        return Load(100.0, 1.0, 2.0, self.computed_by)


def run(plan):
    refused, failed = [], []
    points = list(
        sweep(
            plan,
            on_start=lambda candidate: None,
            on_failure=lambda candidate, reason: failed.append((candidate, reason)),
            on_refused=refused.append,
        )
    )
    return points, refused, failed


def test_the_best_is_measured_with_every_other_engine_and_number_type(plan, monkeypatch):
    Servers(monkeypatch)
    points, refused, failed = run(plan)
    by = [(f"{p.candidate.engine}/{p.candidate.dtype}", p.clients, p.computed_by) for p in points]
    others = ["openvino/float32", "torchscript/float32", "torchscript/bfloat16"]
    assert by == [
        ("auto/auto", 2, AUTO),
        ("auto/auto", 1, AUTO),
        *((name, clients, name) for name in others for clients in (2, 1)),
    ]
    assert (refused, failed) == ([], [])


def test_what_the_workers_refuse_is_reported_and_not_measured_under_a_wrong_name(plan, monkeypatch):
    servers = Servers(monkeypatch, refused=("openvino/float32", "torchscript/bfloat16"))
    points, refused, _ = run(plan)
    assert {p.computed_by for p in points} == {AUTO, "torchscript/float32"}
    assert {(p.candidate.engine, p.computed_by) for p in points} == {
        ("auto", AUTO),
        ("torchscript", "torchscript/float32"),
    }
    asked = Candidate(1, 1, 1, "openvino", "float32"), Candidate(1, 1, 1, "torchscript", "bfloat16")
    assert refused == [Refused(candidate, "torchscript/float32") for candidate in asked]
    assert not [seconds for name, _, seconds in servers.measured if name == "openvino/float32" and seconds]


def test_workers_that_do_not_compute_alike_are_left_out(plan, monkeypatch):
    Servers(monkeypatch).fails = True
    points, refused, failed = run(plan)
    assert {p.computed_by for p in points} == {AUTO}
    assert refused == []
    assert {reason for _, reason in failed} == {"its workers do not compute alike"}


@pytest.mark.parametrize("agreement", [None, 0.9])
def test_bfloat16_is_not_tried_where_the_card_does_not_allow_it(plan, monkeypatch, agreement):
    Servers(monkeypatch)
    found = None if agreement is None else plan.card.bfloat16.model_copy(update={"agreement": agreement})
    points, _, _ = run(replace(plan, card=plan.card.model_copy(update={"bfloat16": found})))
    assert {p.candidate.dtype for p in points} == {"auto", "float32"}
