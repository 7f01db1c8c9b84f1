"""How each demo checkpoint is trained. Facts only; importing this never imports torch."""

from dataclasses import dataclass, replace
from types import MappingProxyType

from handlers.contract.card import Task
from model_store.demo.dataset import Kind


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training run.

    Attributes:
        entry: name of the model in the zoo.
        task: of that model.
        kind: of the pictures.
        pictures: number drawn and kept; each is shown in many variations.
        steps: of the optimiser.
        batch: pictures per step.
        sides_px: input sides, each for an equal share of the steps. Small pictures come first: the network learns most
            of the task on them at a fraction of the cost.
        peak_rate: learning rate after the warm-up of a twentieth of the steps; it then falls as a cosine to 0.
        weight_decay: of the matrices and kernels.
        average: decay of the running average of the weights, which is the result.
        starts_from: recipe whose backbone is taken over, and its head too if the model is the same; None for fresh
            weights.
        frozen: parameters that do not change, by the start of their names; the early stages cost most.
        dice: weight of the Dice loss beside the cross-entropy of a segmentation.
        seed: of the pictures, their order, and the first weights.

    """

    entry: str
    task: Task
    kind: Kind
    pictures: int
    steps: int
    batch: int
    sides_px: tuple[int, ...]
    peak_rate: float
    weight_decay: float = 0.02
    average: float = 0.995
    starts_from: str | None = None
    frozen: tuple[str, ...] = ()
    dice: float = 0.0
    seed: int = 20

    def side_px(self, step: int) -> int:
        """Input side at a step."""
        return self.sides_px[min(step * len(self.sides_px) // self.steps, len(self.sides_px) - 1)]


# Run three times in a row, each from the end of the run before; the last run uses new pictures.
_SEGMENT_FINE = Recipe(
    entry="demo_segment",
    task=Task.SEGMENT,
    kind="scene",
    pictures=3000,
    steps=1400,
    batch=8,
    sides_px=(192,),
    peak_rate=6e-4,
    starts_from="segment_coarse",
    frozen=("backbone.stem.", "backbone.stages.0.", "backbone.stages.1."),
    dice=1.0,
)

# A backbone learns the shapes from pictures of a single shape, at little cost; other recipes start from it.
RECIPES = MappingProxyType(
    {
        "classify": Recipe(
            entry="demo_classify",
            task=Task.CLASSIFY,
            kind="single",
            pictures=4000,
            steps=4800,
            batch=16,
            sides_px=(64, 96, 96, 128),
            peak_rate=2e-3,
        ),
        "detect": Recipe(
            entry="demo_detect",
            task=Task.DETECT,
            kind="scene",
            pictures=3000,
            steps=5200,
            batch=8,
            sides_px=(96, 128, 160, 160),
            peak_rate=1.5e-3,
            starts_from="classify",
        ),
        "segment_coarse": Recipe(
            entry="demo_segment",
            task=Task.SEGMENT,
            kind="scene",
            pictures=3000,
            steps=6000,
            batch=8,
            sides_px=(96, 96, 128, 192),
            peak_rate=1.5e-3,
        ),
        "segment_fine": _SEGMENT_FINE,
        "segment_finer": replace(_SEGMENT_FINE, steps=900, starts_from="segment_fine"),
        "segment": replace(_SEGMENT_FINE, pictures=6000, steps=2000, starts_from="segment_finer", seed=21),
    }
)


def before(name: str) -> tuple[str, ...]:
    """Names of the recipes that this one needs, in the order in which they run."""
    start = RECIPES[name].starts_from
    return () if start is None else (*before(start), start)
