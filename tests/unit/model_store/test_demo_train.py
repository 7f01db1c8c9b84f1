"""Training the demo models: it learns, it resumes exactly, and its losses are what they say."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from handlers.contract.card import Task
from model_store.demo import checkpoints
from model_store.demo_training import losses, train
from model_store.demo_training.pool import Batch
from model_store.demo_training.recipes import RECIPES, Recipe
from model_store.demo_training.train import Moment, NotTrained

TINY = Recipe(
    entry="demo_classify",
    task=Task.CLASSIFY,
    kind="single",
    pictures=8,
    steps=8,
    batch=4,
    sides_px=(32, 64),
    peak_rate=2e-3,
    seed=3,
)


@pytest.fixture(autouse=True)
def save_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "SAVE_EVERY", 3)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("task", ["classify", "detect", "segment"])
def test_a_few_steps_reduce_the_loss(task: str, tmp_path: Path) -> None:
    recipe = RECIPES[task]
    tiny = replace(recipe, pictures=4, batch=4, steps=25, sides_px=(64,), peak_rate=4e-3, starts_from=None, frozen=())
    moments: list[Moment] = []
    train.run(tiny, folder=tmp_path, advance=moments.append)
    assert [moment.step for moment in moments] == list(range(1, 26))
    # Smoothed over some thirty steps, so half of the first loss is still in the last.
    assert moments[-1].loss < moments[12].loss < moments[0].loss
    assert moments[-1].loss < 0.95 * moments[0].loss


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("interrupted_after", [1, 3, 5])
def test_an_interrupted_run_ends_with_the_same_bits(interrupted_after: int, tmp_path: Path) -> None:
    whole = train.run(TINY, folder=tmp_path / "whole")

    def interrupt(moment: Moment) -> None:
        if moment.step == interrupted_after:
            raise Interrupted

    with pytest.raises(Interrupted):
        train.run(TINY, folder=tmp_path / "parts", advance=interrupt)
    steps: list[int] = []
    parts = train.run(TINY, folder=tmp_path / "parts", advance=lambda moment: steps.append(moment.step))
    assert steps[0] == interrupted_after // 3 * 3 + 1, "it goes on at the last state that was saved"
    assert steps[-1] == TINY.steps
    assert same(whole.weights, parts.weights)
    assert not list((tmp_path / "parts").glob("*.part"))


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = train.run(TINY, folder=tmp_path)
    moments: list[Moment] = []
    again = train.run(TINY, folder=tmp_path, advance=moments.append)
    assert not moments
    assert same(first.weights, again.weights)
    assert again.wall_seconds == pytest.approx(first.wall_seconds, abs=1.0)


def test_another_recipe_does_not_continue_this_one(tmp_path: Path) -> None:
    train.run(TINY, folder=tmp_path, stop_after=3)
    steps: list[int] = []
    other = replace(TINY, peak_rate=1e-3)
    train.run(other, folder=tmp_path, stop_after=2, advance=lambda moment: steps.append(moment.step))
    assert steps == [1, 2]


def test_what_is_frozen_stays_and_the_rest_learns(tmp_path: Path) -> None:
    frozen = "backbone.stem."
    tiny = replace(RECIPES["segment"], pictures=4, batch=2, steps=2, sides_px=(32,), starts_from=None, frozen=(frozen,))
    before = train.run(tiny, folder=tmp_path, stop_after=0).weights
    after = train.run(tiny, folder=tmp_path).weights
    changed = {name for name in before if name.endswith("weight") and not torch.equal(before[name], after[name])}
    assert changed
    assert not any(name.startswith(frozen) for name in changed)


def test_a_second_stage_takes_over_the_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = replace(TINY, starts_from="first", seed=4)
    monkeypatch.setattr(train, "RECIPES", {"first": TINY})
    first = train.run(TINY, folder=tmp_path).weights
    assert same(first, train.run(second, folder=tmp_path, stop_after=0).weights)


def test_the_dice_loss_is_nothing_for_the_truth_and_one_for_its_opposite() -> None:
    classes = torch.tensor([[[0, 1], [1, 0]]])  # [N, S, S]
    batch = Batch(pixels=torch.zeros(0), labels=torch.zeros(0), classes=classes, boxes=[], box_labels=[])
    sure = 40.0 * torch.nn.functional.one_hot(classes, 3).permute(0, 3, 1, 2)  # [N, K, S, S]
    assert losses.segmentation_loss(sure, batch, dice=1.0) < 1e-6
    wrong = sure[:, [1, 0, 2]]
    by_dice = losses.segmentation_loss(wrong, batch, dice=1.0) - losses.segmentation_loss(wrong, batch, dice=0.0)
    assert by_dice == pytest.approx(1.0, abs=1e-5)


def test_a_run_that_needs_another_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotTrained, match="segment"):
        train.run(replace(TINY, starts_from="segment"), folder=tmp_path)


ANCHORS = torch.tensor([[0.25, 0.25, 0.3, 0.3], [0.75, 0.75, 0.3, 0.3], [0.75, 0.25, 0.3, 0.3]])


def test_anchors_are_matched_by_overlap_and_every_shape_claims_one() -> None:
    near = [0.1, 0.1, 0.4, 0.4]  # the first anchor itself
    far = [0.6, 0.7, 0.72, 0.8]  # overlaps the second by less than half
    classes, targets = losses.match(torch.tensor([near, far]), torch.tensor([4, 6]), ANCHORS)
    assert classes.tolist() == [5, 7, 0]
    assert targets[0].abs().max() < 1e-5
    assert targets[1, 2] < 0  # narrower than its anchor
    assert not targets[2].any()


def test_a_picture_without_shapes_has_only_background() -> None:
    classes, targets = losses.match(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), ANCHORS)
    assert not classes.any()
    assert not targets.any()


def test_what_is_stored_is_small_and_reads_back(tmp_path: Path) -> None:
    state = {
        "a.weight": torch.randn(4, 3, 3, 3),
        "a.running_var": torch.full((4,), 1e-9),  # float16 would make it 0
        "a.num_batches_tracked": torch.tensor(7),
    }
    kept = checkpoints.stored(state)
    assert {name: value.dtype for name, value in kept.items()} == {
        "a.weight": torch.float16,
        "a.running_var": torch.float32,
    }
    assert torch.allclose(kept["a.weight"].float(), state["a.weight"], rtol=1e-3, atol=1e-6)
