"""The models this server serves, from the cards beside their archives.

`NAME.mar` is the version of a model that is served unless something else is said; `NAME@VERSION.mar` are others, each
with its card beside it. A roll-out alone replaces a card (`replace`), by that of the version that answers from then on.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import ValidationError

from model_store.card import Card, Task, WeightsState
from service.errors import ModelNotFound, NoDefaultModel, TaskMismatch

CARD_SUFFIX = ".card.json"
ARCHIVE_SUFFIX = ".mar"
VERSION_MARK = "@"  # names of models cannot hold it
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

    def replace(self, card: Card) -> None:
        """Serve another version of a model from now on."""
        if self._cards[card.name].task is not card.task:
            raise ValueError(f"this is a bug: {card.name} cannot change from {self._cards[card.name].task}")
        self._cards[card.name] = card

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


def stem_of(name: str, version: str) -> str:
    """What the files of a version are called, before their suffixes."""
    return f"{name}{VERSION_MARK}{version}"


def archive_of(archives: Path, card: Card) -> Path:
    """The archive a card of this folder belongs to."""
    named = archives / f"{stem_of(card.name, card.version)}{ARCHIVE_SUFFIX}"
    return named if named.is_file() else archives / f"{card.name}{ARCHIVE_SUFFIX}"


def find(archives: Path, name: str, version: str) -> Card:
    """The card of one version of a model. Raises `CatalogError`."""
    for stem in (stem_of(name, version), name):
        if not (archives / f"{stem}{CARD_SUFFIX}").is_file():
            continue
        card = _read_card(archives, stem)
        if (card.name, card.version) == (name, version):
            return card
        if stem != name:
            raise CatalogError(f"{archives / stem}{CARD_SUFFIX} is of version {card.version} of {card.name}")
    raise CatalogError(
        f"no archive of version {version} of {name!r} in {archives}; bring one with: mobilevision models canary {name} "
        "--archive FILE"
    )


def _read_card(archives: Path, stem: str) -> Card:
    path, name = archives / f"{stem}{CARD_SUFFIX}", stem.partition(VERSION_MARK)[0]
    if not (archives / f"{stem}{ARCHIVE_SUFFIX}").is_file():
        raise CatalogError(f"{path} has no {stem}{ARCHIVE_SUFFIX} beside it; rebuild: mobilevision models build {name}")
    try:
        return Card.read(path)
    except (OSError, ValidationError) as error:
        raise CatalogError(f"cannot read {path}: {error}; rebuild: mobilevision models build {name}") from error


def read(
    archives: Path,
    *,
    models: Iterable[str] = (),
    default_models: Iterable[str] = (),
    versions: Mapping[str, str] | None = None,
) -> Catalog:
    """Read the cards of `models` (all when empty, if they are few) from a folder. Raises `CatalogError`.

    `versions`: of models that are served in another version than that of `NAME.mar`.
    """
    models, versions = list(models), versions or {}
    stems = {path.name.removesuffix(CARD_SUFFIX) for path in archives.glob(f"*{CARD_SUFFIX}")}
    chosen = {name for name, version in versions.items() if stem_of(name, version) in stems}
    found = sorted({stem for stem in stems if VERSION_MARK not in stem} | chosen)
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
        if name not in found:
            raise CatalogError(f"no archive of {name!r} in {archives}; build it with: mobilevision models build {name}")
        version = versions.get(name)
        cards.append(_read_card(archives, name) if version is None else find(archives, name, version))
    return Catalog(cards, default_models=default_models)
