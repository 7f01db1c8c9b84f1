"""Which lane a request takes."""

from typing import cast

import pytest
from fakes import toy_card

from service.lanes import Lane, ModelLanes


class FakeLane:
    def __init__(self, version: str) -> None:
        self.card = toy_card().model_copy(update={"version": version})
        self.version = version
        self.ready = True


def lanes(weight: float, shadow: float = 0.0) -> ModelLanes:
    found = ModelLanes(cast(Lane, FakeLane("1.0")))
    found.candidate = cast(Lane, FakeLane("1.1"))
    found.weight, found.shadow = weight, shadow
    return found


IDS = [f"request-{number}" for number in range(4000)]


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.5, 1.0])
def test_the_candidate_gets_its_share(weight: float) -> None:
    model = lanes(weight)
    chosen = sum(model.choose(each).lane is model.candidate for each in IDS)
    assert chosen / len(IDS) == pytest.approx(weight, abs=0.02)


def test_a_request_meets_the_same_version_again_and_keeps_it_when_the_weight_grows() -> None:
    first, more = lanes(0.1), lanes(0.5)
    early = {each for each in IDS if first.choose(each).lane is first.candidate}
    assert early == {each for each in IDS if first.choose(each).lane is first.candidate}
    assert early < {each for each in IDS if more.choose(each).lane is more.candidate}


def test_shadow_runs_are_a_share_of_what_the_stable_version_answers() -> None:
    model = lanes(0.5, shadow=0.2)
    choices = [model.choose(each) for each in IDS]
    assert not any(choice.compared for choice in choices if choice.lane is model.candidate)
    stable = [choice for choice in choices if choice.lane is model.stable]
    assert sum(choice.compared for choice in stable) / len(stable) == pytest.approx(0.2, abs=0.03)


def test_a_candidate_that_is_not_ready_gets_nothing() -> None:
    model = lanes(1.0, shadow=1.0)
    assert model.candidate is not None
    model.candidate.ready = False
    choice = model.choose("any")
    assert choice.lane is model.stable
    assert not choice.compared


def test_promotion_leaves_no_candidate() -> None:
    model = lanes(0.5)
    stable, candidate = model.stable, model.candidate
    assert model.promote() is stable
    assert (model.stable, model.candidate, model.weight) == (candidate, None, 0.0)
    assert model.all == [candidate]
