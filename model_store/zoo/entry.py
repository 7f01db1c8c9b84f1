"""One entry of the zoo: a model with its backbone, head, input and published scores. Facts only, no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from handlers.contract.card import InputSize, Normalize, Preprocess, Task
from model_store.labels import LabelSet
from model_store.zoo.backbones import BackboneSpec
from model_store.zoo.heads import HeadSpec

COMMITTED = Path(__file__).parents[1] / "demo" / "weights"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model: its parts, its input, its official checkpoint, its costs.

    Attributes:
        name: unique, as requests and commands name the model.
        task: what the model answers.
        backbone: family, variant and options of the backbone.
        head: which head, with its options.
        labels: of the classes, see `model_store.labels`.
        input: height and width of the input in pixels.
        preprocess: how the gateway brings a picture to that size.
        normalize: what the module does to the pixels first.
        paper: title and arXiv number.
        licence: of the official weights.
        checkpoint_url: address of the official checkpoint; empty where none was published.
        layout: key layout of the official checkpoint, see `model_store.weights.layouts`.
        parameters: learnable scalars.
        macs: multiply-adds of convolutions and matrix products for one picture at `input`.
        published: metric (`top1`, `top5`, `map`, `miou`) to the score in percent that the authors published.
        committed: the weights are part of this project, see `committed_checkpoint`.

    """

    name: str
    task: Task
    backbone: BackboneSpec
    head: HeadSpec
    labels: LabelSet
    input: InputSize
    preprocess: Preprocess
    normalize: Normalize
    paper: str
    licence: str
    checkpoint_url: str
    layout: str
    parameters: int
    macs: int
    published: Mapping[str, float] = field(default_factory=dict)
    committed: bool = False

    @property
    def family(self) -> str:
        """Name of the backbone's family."""
        return self.backbone.family

    @property
    def variant(self) -> str:
        """Name of the backbone's size."""
        return self.backbone.variant

    @property
    def classes(self) -> int:
        """Number of labels; a segmenter counts its background."""
        return len(self.labels.names)

    @property
    def committed_checkpoint(self) -> Path | None:
        """The file with the weights that are part of this project, used where no other file is named; else None."""
        return COMMITTED / f"{self.name}.safetensors" if self.committed else None


class UnknownModel(LookupError):
    """No entry has this name. `nearest` holds the most similar names."""

    def __init__(self, name: str, nearest: tuple[str, ...]) -> None:
        hint = f"; did you mean {' or '.join(nearest)}?" if nearest else "; `mobilevision models list` shows all names"
        super().__init__(f"no model is called {name!r}{hint}")
        self.name = name
        self.nearest = nearest
