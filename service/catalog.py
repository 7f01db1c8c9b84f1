"""The models this server serves, from the cards beside their archives. Immutable once read."""

import difflib
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from model_store.card import Card, Task, WeightsState
from service.errors import ModelNotFound, NoDefaultModel, TaskMismatch

CARD_SUFFIX = ".card.json"
ARCHIVE_SUFFIX = ".mar"
MOST_UNNAMED = 6  # archives served without being named

_TRUST = {WeightsState.OFFICIAL: 0, WeightsState.CUSTOM: 1, WeightsState.DEMO: 2, WeightsState.RANDOM: 3}


class CatalogError(ValueError):
    """The archives folder cannot be served; the message says what to do."""


class Catalog:
    """Cards by name, and the default model of each task."""

    def __init__(self, cards: Iterable[Card], *, default_models: Iterable[str] = ()) -> None:
        self._cards = {card.name: card for card in sorted(cards, key=lambda card: card.name)}
        self._defaults: dict[Task, str] = {}
        for name in default_models:
            if name not in self._cards:
                raise CatalogError(f"default model {name!r} is not served; served: {', '.join(self._cards)}")
            task = self._cards[name].task
            if task in self._defaults:
                raise CatalogError(f"two default models for {task}: {self._defaults[task]} and {name}")
            self._defaults[task] = name
        for card in sorted(self._cards.values(), key=lambda card: (_TRUST[card.weights.state], card.macs)):
            self._defaults.setdefault(card.task, card.name)

    @property
    def cards(self) -> tuple[Card, ...]:
        """All cards, sorted by name."""
        return tuple(self._cards.values())

    def is_default(self, card: Card) -> bool:
        """Whether requests that name no model go to this one."""
        return self._defaults.get(card.task) == card.name

    def get(self, name: str) -> Card:
        """Find a model. Raises `ModelNotFound` with the nearest names."""
        card = self._cards.get(name)
        if card is None:
            nearest = difflib.get_close_matches(name, self._cards, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"served: {', '.join(self._cards)}"
            raise ModelNotFound(
                f"no model named {name[:100]!r}; {hint}",
                metadata={"model": name[:100], "nearest": ",".join(nearest)},
            )
        return card

    def for_task(self, name: str, task: Task) -> Card:
        """Find the model for a call; an empty name means the task's default. Raises a `ClientError`."""
        if not name:
            default = self._defaults.get(task)
            if default is None:
                raise NoDefaultModel(
                    f"this server serves no model that can {task}; served: {', '.join(self._cards)}",
                    metadata={"task": task},
                )
            return self._cards[default]
        card = self.get(name)
        if card.task is not task:
            raise TaskMismatch(
                f"model {name} answers {card.task.capitalize()}, not {task.capitalize()}",
                metadata={"model": name, "model_task": card.task, "called": task},
            )
        return card


def read(archives: Path, *, models: Iterable[str] = (), default_models: Iterable[str] = ()) -> Catalog:
    """Read the cards of `models` (all when empty, if they are few) from a folder. Raises `CatalogError`."""
    models = list(models)
    found = sorted(path.name.removesuffix(CARD_SUFFIX) for path in archives.glob(f"*{CARD_SUFFIX}"))
    if not models and len(found) > MOST_UNNAMED:
        raise CatalogError(
            f"{archives} holds {len(found)} archives, and each model served takes a process of its own; "
            f"name those to serve: mobilevision serve {' '.join(found[:2])} ..."
        )
    wanted = list(dict.fromkeys(models)) or found
    if not wanted:
        raise CatalogError(f"no model archives in {archives}; build some with: mobilevision models build")
    cards = []
    for name in wanted:
        path = archives / f"{name}{CARD_SUFFIX}"
        if name not in found:
            raise CatalogError(f"no archive of {name!r} in {archives}; build it with: mobilevision models build {name}")
        if not (archives / f"{name}{ARCHIVE_SUFFIX}").is_file():
            raise CatalogError(
                f"{path} has no {name}{ARCHIVE_SUFFIX} beside it; rebuild: mobilevision models build {name}"
            )
        try:
            cards.append(Card.read(path))
        except (OSError, ValidationError) as error:
            raise CatalogError(f"cannot read {path}: {error}; rebuild: mobilevision models build {name}") from error
    return Catalog(cards, default_models=default_models)
