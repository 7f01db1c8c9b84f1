"""Why a model answers unlike its training code: the usual mistakes in preprocessing, tried one by one and in pairs.

In: a card, and a function from a card to the distance of its answer from the expected one. Out: a phrase that names the
change that makes both agree, or the nearest one. It knows nothing of tasks and of modules.
"""

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

from handlers.contract.card import Card, Normalize, Preprocess

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_NORMALIZATIONS = (
    ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    _IMAGENET,
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),  # values in 0..255
)
_SIDES = (1.0, 256 / 224, 288 / 256, 1 / 0.9, 1 / 0.95)  # shorter side before the crop, in shorter sides of the input
_MOST_PX = 4096
_FILTERS = (("bilinear", True), ("bilinear", False), ("bicubic", True))

Change = tuple[str, dict[str, Any]]  # what to write into the definition, and the fields of the card that it changes


def explain(card: Card, distance: Callable[[Card], float], found: float, limit: float) -> str:
    """The first change, or pair of changes, with which the answer is the expected one; otherwise the nearest."""
    best, nearest = found, ""
    for words, changed in _changed(card):
        after = distance(changed)
        if after <= limit:
            return f"with {words} it is {after:.2g}: say so in [preprocess], or by the option of that name"
        if after < best:
            best, nearest = after, words
    most = f"; the nearest is {nearest} with {best:.2g}" if nearest else ""
    return (
        "no other channels, mean, std, resize or interpolation that was tried gives it"
        f"{most}; look at the input size, the layout and set of weights, and the mean and std of the training"
    )


def _changed(card: Card) -> Iterator[tuple[str, Card]]:
    """The card with one change each, and then with two."""
    groups = (_channels(card), _normalizations(card), _resizes(card))
    for group in groups:
        for words, fields in group:
            yield words, card.model_copy(update=fields)
    for first, second in combinations(groups, 2):
        for words, fields in first:
            for other_words, other_fields in second:
                update = {**fields, **other_fields}
                if "normalize" in fields and "normalize" in other_fields:
                    order = fields["normalize"].channel_order  # of `_channels`, which is the first group
                    update["normalize"] = other_fields["normalize"].model_copy(update={"channel_order": order})
                yield f"{words} and {other_words}", card.model_copy(update=update)


def _channels(card: Card) -> list[Change]:
    order = "BGR" if card.normalize.channel_order == "RGB" else "RGB"
    swapped = card.normalize.model_copy(update={"channel_order": order})
    changes: list[Change] = [(f'channels = "{order}"', {"normalize": swapped})]
    mean, std = card.normalize.mean[::-1], card.normalize.std[::-1]
    if (mean, std) != (card.normalize.mean, card.normalize.std):
        both = swapped.model_copy(update={"mean": mean, "std": std})
        words = f'channels = "{order}", mean = {_listed(mean)} and std = {_listed(std)}'
        changes.append((words, {"normalize": both}))
    return changes


def _normalizations(card: Card) -> list[Change]:
    own = (card.normalize.mean, card.normalize.std)
    return [
        (
            f"mean = {_listed(mean)} and std = {_listed(std)}",
            {"normalize": Normalize(channel_order=card.normalize.channel_order, mean=mean, std=std)},
        )
        for mean, std in _NORMALIZATIONS
        if (mean, std) != own
    ]


def _resizes(card: Card) -> list[Change]:
    """Other resizes, with the filter of the card first."""
    own = (card.preprocess.interpolation, card.preprocess.antialias)
    filters = sorted(_FILTERS, key=lambda each: each != own)
    own_place = card.preprocess.model_dump(include={"mode", "shorter_side_px", "crop_offset"})
    side = min(card.input.width, card.input.height)
    crops = {min(round(side * share), _MOST_PX): None for share in _SIDES}
    changes: list[Change] = []
    for interpolation, antialias in filters:
        how: dict[str, Any] = {"interpolation": interpolation, "antialias": antialias}
        written = f'interpolation = "{interpolation}" and antialias = {str(antialias).lower()}'
        if (interpolation, antialias) != own:
            changes.append((written, {"preprocess": Preprocess(**own_place, **how)}))
        filtered = "" if (interpolation, antialias) == own else f" and {written}"
        places: list[tuple[str, dict[str, Any]]] = [('resize = "squash"', {"mode": "squash"})]
        places += [
            (f'resize = "crop", shorter_side_px = {px}', {"mode": "crop", "shorter_side_px": px}) for px in crops
        ]
        changes += [(words + filtered, {"preprocess": Preprocess(**place, **how)}) for words, place in places]
    if card.preprocess.mode == "crop":
        offset = "round" if card.preprocess.crop_offset == "floor" else "floor"
        moved = card.preprocess.model_copy(update={"crop_offset": offset})
        changes.append((f'crop_offset = "{offset}"', {"preprocess": moved}))
    return [change for change in changes if change[1]["preprocess"] != card.preprocess]


def _listed(numbers: tuple[float, ...]) -> str:
    return str([round(number, 6) for number in numbers])
