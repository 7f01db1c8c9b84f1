"""Train one demo model. In: a recipe and a folder. Out: the averaged weights, float32, under the network's own names.

A run is a function of its recipe: order, variations, dropout and first weights come from the seed and the step.
The state is saved in the folder every `SAVE_EVERY` steps, replaced atomically. A run that was interrupted continues
from the last saved state and ends with the same bits. (On one machine with one torch: other processors sum in other
orders.)
"""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model_store import zoo
from model_store.build import assemble
from model_store.demo_training import pool
from model_store.demo_training.recipes import RECIPES, Recipe
from model_store.demo_training.tasks import DEMO_TASKS
from model_store.networks.pixels import Pixels

SAVE_EVERY = 50  # steps
_POOL_PX = 192  # side of the pictures that are kept
_WARM_UP = 0.05  # of the steps
_MAX_GRADIENT_NORM = 5.0

State = dict[str, Tensor]


@dataclass(frozen=True)
class Trained:
    """The result of a run: averaged weights, and the time over all parts of an interrupted run."""

    weights: State
    steps: int
    wall_seconds: float
    last_loss: float


class NotTrained(Exception):
    """A run starts from another run, which has not ended; the message names it."""


@dataclass(frozen=True)
class Moment:
    """Progress of a run: `step` of `steps` are done; `loss` is smoothed over the last few dozen steps."""

    step: int
    steps: int
    loss: float


def run(
    recipe: Recipe,
    *,
    folder: Path,
    drawn: Callable[[], None] = lambda: None,
    advance: Callable[[Moment], None] = lambda _: None,
    stop_after: int | None = None,
) -> Trained:
    """Train, or continue to train, until the recipe is done.

    Args:
        recipe: the run.
        folder: for drawn pictures and states; made if needed.
        drawn: called for each picture drawn.
        advance: called after each step.
        stop_after: return early after this step, as an interrupted run would, with the weights so far.

    Raises `NotTrained` where the run that it starts from has not ended.

    """
    torch.set_num_threads(1)  # sums in a fixed order
    pictures = pool.load(
        folder=folder,
        seed=recipe.seed,
        kind=recipe.kind,
        pictures=recipe.pictures,
        side_px=_POOL_PX,
        advance=drawn,
    )
    entry = zoo.get(recipe.entry)
    torch.manual_seed(recipe.seed)
    network = assemble.build(entry).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pixels = Pixels(normalize=entry.normalize)
    optimizer = _optimizer(network, recipe)
    path = folder / f"{recipe.entry}_{_digest(recipe)}.pt"
    start, smoothed, spent_seconds = 0, 0.0, 0.0
    if path.is_file():
        stored = torch.load(path, weights_only=True)
        network.load_state_dict(stored["network"])
        optimizer.load_state_dict(stored["optimizer"])
        average: State = stored["average"]
        start, smoothed, spent_seconds = stored["step"], stored["loss"], stored["seconds"]
    else:
        if recipe.starts_from is not None:
            _take_over(network, recipe, folder)
        average = {name: value.clone() for name, value in network.state_dict().items()}
    started = time.monotonic() - spent_seconds
    network.train()
    end = recipe.steps if stop_after is None else min(stop_after, recipe.steps)
    for step in range(start, end):
        loss = _step(network, pixels, optimizer, pictures, recipe, step)
        _move_average(average, network, recipe.average, step)
        smoothed = loss if step == 0 else 0.97 * smoothed + 0.03 * loss
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == end:
            state = {
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average,
                "step": step + 1,
                "loss": smoothed,
                "seconds": time.monotonic() - started,
            }
            unfinished = path.with_suffix(".part")
            torch.save(state, unfinished)
            unfinished.replace(path)
        advance(Moment(step=step + 1, steps=recipe.steps, loss=smoothed))
    return Trained(weights=average, steps=end, wall_seconds=time.monotonic() - started, last_loss=smoothed)


def _digest(recipe: Recipe) -> str:
    """Name of a run, which depends on its recipe and on the recipes of the runs before it."""
    before = "" if recipe.starts_from is None else _digest(RECIPES[recipe.starts_from])
    return hashlib.sha256(f"{recipe}{before}".encode()).hexdigest()[:12]


def _take_over(network: nn.Module, recipe: Recipe, folder: Path) -> None:
    name = str(recipe.starts_from)
    other = RECIPES[name]
    path = folder / f"{other.entry}_{_digest(other)}.pt"
    stored: Any = torch.load(path, weights_only=True) if path.is_file() else None
    if stored is None or stored["step"] < other.steps:
        raise NotTrained(f"{name} has to be trained first: this run starts where it ends")
    taken = "" if other.entry == recipe.entry else "backbone."
    weights = {name: value for name, value in stored["average"].items() if name.startswith(taken)}
    strange = network.load_state_dict(weights, strict=False).unexpected_keys
    if strange:
        raise RuntimeError(f"this is a bug: {name} has another backbone ({strange[0]})")


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; norms and biases do not decay. Frozen parameters are left out and get no gradient."""
    for name, value in network.named_parameters():
        value.requires_grad_(not name.startswith(recipe.frozen))
    wide = [value for value in network.parameters() if value.requires_grad and value.dim() > 1]
    flat = [value for value in network.parameters() if value.requires_grad and value.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": wide}, {"params": flat, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.peak_rate, weight_decay=recipe.weight_decay)


def _rate(recipe: Recipe, step: int) -> float:
    """Learning rate at a step: linear warm-up, then half a cosine to 0."""
    warm = max(1, round(_WARM_UP * recipe.steps))
    if step < warm:
        return recipe.peak_rate * (step + 1) / warm
    return recipe.peak_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, recipe.steps - warm)))


def _step(
    network: nn.Module,
    pixels: Pixels,
    optimizer: torch.optim.Optimizer,
    pictures: pool.Pool,
    recipe: Recipe,
    step: int,
) -> float:
    """Do one step and return its loss."""
    torch.manual_seed(recipe.seed * 1_000_003 + step)  # for dropout
    side = recipe.side_px(step)
    shown = pool.batch(pictures, seed=recipe.seed, step=step, size=recipe.batch, side_px=side)
    for group in optimizer.param_groups:
        group["lr"] = _rate(recipe, step)
    loss = DEMO_TASKS[recipe.task].loss(network(pixels(shown.pixels)), shown, recipe)
    if not bool(torch.isfinite(loss)):
        raise RuntimeError(f"{recipe.entry}: the loss of step {step} is {float(loss)}")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(network.parameters(), _MAX_GRADIENT_NORM)
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def _move_average(average: State, network: nn.Module, decay: float, step: int) -> None:
    """Move the running average towards the weights; young averages move faster."""
    share = 1 - min(decay, (1 + step) / (10 + step))
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, share)
        else:
            average[name].copy_(value)
