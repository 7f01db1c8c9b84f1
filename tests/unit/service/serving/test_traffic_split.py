"""Which deployment answers a request."""

import pytest
from fake_deployment import FakeDeployment
from fakes import toy_card, toy_run

from service.core.errors import Bug
from service.serving.traffic_split import TrafficSplit


def deployment(version: str) -> FakeDeployment:
    made = FakeDeployment(toy_card().model_copy(update={"version": version}), toy_run)
    made.why_not_ready = None
    return made


def split(weight: float, shadow: float = 0.0) -> TrafficSplit:
    found = TrafficSplit(deployment("1.0"))
    found.candidate = deployment("1.1")
    found.weight, found.shadow = weight, shadow
    return found


IDS = [f"request-{number}" for number in range(4000)]


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.5, 1.0])
def test_the_candidate_gets_its_share(weight: float) -> None:
    model = split(weight)
    chosen = sum(model.choose(each).deployment is model.candidate for each in IDS)
    assert chosen / len(IDS) == pytest.approx(weight, abs=0.02)


def test_a_request_meets_the_same_version_again_and_keeps_it_when_the_weight_grows() -> None:
    first, more = split(0.1), split(0.5)
    early = {each for each in IDS if first.choose(each).deployment is first.candidate}
    assert early == {each for each in IDS if first.choose(each).deployment is first.candidate}
    assert early < {each for each in IDS if more.choose(each).deployment is more.candidate}


def test_shadow_runs_are_a_share_of_what_the_stable_version_answers() -> None:
    model = split(0.5, shadow=0.2)
    choices = [model.choose(each) for each in IDS]
    assert not any(choice.compared for choice in choices if choice.deployment is model.candidate)
    stable = [choice for choice in choices if choice.deployment is model.stable]
    assert sum(choice.compared for choice in stable) / len(stable) == pytest.approx(0.2, abs=0.03)


def test_a_candidate_that_is_not_ready_gets_nothing() -> None:
    model = split(1.0, shadow=1.0)
    assert isinstance(model.candidate, FakeDeployment)
    model.candidate.why_not_ready = "it is starting"
    choice = model.choose("any")
    assert choice.deployment is model.stable
    assert not choice.compared


def test_promotion_leaves_no_candidate_and_one_stable_deployment() -> None:
    model = split(0.5)
    stable, candidate = model.stable, model.candidate
    assert isinstance(stable, FakeDeployment)
    assert isinstance(candidate, FakeDeployment)
    assert (stable.stable, candidate.stable) == (True, False)
    assert model.promote() is stable
    assert (model.stable, model.candidate, model.weight) == (candidate, None, 0.0)
    assert (stable.stable, candidate.stable) == (False, True)
    assert model.all == [candidate]
    with pytest.raises(Bug):
        model.promote()


def test_shares_are_by_version_and_add_up() -> None:
    assert split(0.25).shares() == {"1.0": ("stable", 0.75), "1.1": ("candidate", 0.25)}
    assert TrafficSplit(deployment("1.0")).shares() == {"1.0": ("stable", 1.0)}
