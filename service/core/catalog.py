"""The models that this server serves, read from the cards beside their archives.

`NAME.mar` is the version of a model that is served by default. `NAME@VERSION.mar` are other versions. Each archive has
its card beside it. While the server runs, only a roll-out replaces a card (`replace`).

In: the archives folder and the names to serve. Out: a `Catalog`. Never opens an archive.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from pydantic import ValidationError

from handlers.contract.card import Card, Task, WeightsState
from service.core.errors import ModelNotFound, NoDefaultModel, TaskMismatch

CARD_SUFFIX = ".card.json"
ARCHIVE_SUFFIX = ".mar"
VERSION_MARK = "@"  # names of models cannot contain it
LONGEST_NAME = 100  # characters in the name of a model, as in `Card`
MOST_UNNAMED = 6  # with more archives, the operator must name the models to serve

_TRUST = {WeightsState.OFFICIAL: 0, WeightsState.CUSTOM: 1, WeightsState.DEMO: 2, WeightsState.RANDOM: 3}


class CatalogError(ValueError):
    """The archives folder cannot be served. The message says what to do."""


class Catalog:
    """Cards by name, and the default model of each task. Raises `CatalogError` for invalid `default_models`.

    The default of a task is the one in `default_models`. Without it: official weights before custom, demo and random
    ones, then the model with the fewest multiply-adds.
    """

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
        """Replace the card of a model by the card of another version of it."""
        if self._cards[card.name].task is not card.task:
            raise ValueError(f"this is a bug: {card.name} cannot change from {self._cards[card.name].task}")
        self._cards[card.name] = card

    def limited_to(self, names: Collection[str]) -> "Catalog":
        """Return a catalog of the cards with these names. Its default models are those of this one, where it has them.

        It does not follow a later `replace`.
        """
        limited = Catalog(())
        limited._cards = {name: card for name, card in self._cards.items() if name in names}
        limited._defaults = {task: name for task, name in self._defaults.items() if name in names}
        return limited

    def is_default(self, card: Card) -> bool:
        """Return whether requests that name no model go to this one."""
        return self._defaults.get(card.task) == card.name

    def get(self, name: str) -> Card:
        """Return the card of a model. Raises `ModelNotFound`, with the most similar names."""
        card = self._cards.get(name)
        if card is None:
            shown = name[:LONGEST_NAME]  # difflib's time grows with the length
            nearest = difflib.get_close_matches(shown, self._cards, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"served: {', '.join(self._cards)}"
            raise ModelNotFound(
                f"no model named {shown!r}; {hint}",
                metadata={"model": shown, "nearest": ",".join(nearest)},
            )
        return card

    def for_task(self, name: str, task: Task) -> Card:
        """Return the card for a request. An empty name means the default model of the task.

        Raises `ModelNotFound`, `NoDefaultModel`, `TaskMismatch`.
        """
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
                f"model {name} is for {card.task.capitalize()}, not for {task.capitalize()}",
                metadata={"model": name, "model_task": card.task, "called": task},
            )
        return card


def stem_of(name: str, version: str) -> str:
    """Return the name of the files of a version, without suffix."""
    return f"{name}{VERSION_MARK}{version}"


def archive_of(archives: Path, card: Card) -> Path:
    """Return the path of the archive that belongs to a card in the folder `archives`."""
    named = archives / f"{stem_of(card.name, card.version)}{ARCHIVE_SUFFIX}"
    return named if named.is_file() else archives / f"{card.name}{ARCHIVE_SUFFIX}"


def find(archives: Path, name: str, version: str) -> Card:
    """Read the card of one version of a model. Raises `CatalogError`."""
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
    """Read the cards of `models` from the folder `archives`. Empty: of all archives, up to `MOST_UNNAMED`.

    `versions` names the version to serve, for models that are not served from `NAME.mar`. Raises `CatalogError`.
    """
    models, versions = list(models), versions or {}
    stems = {path.name.removesuffix(CARD_SUFFIX) for path in archives.glob(f"*{CARD_SUFFIX}")}
    chosen = {name for name, version in versions.items() if stem_of(name, version) in stems}
    found = sorted({stem for stem in stems if VERSION_MARK not in stem} | chosen)
    if not models and len(found) > MOST_UNNAMED:
        raise CatalogError(
            f"{archives} has {len(found)} archives, and each served model needs processes of its own; "
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
