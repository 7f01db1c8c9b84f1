"""Phrases about a built archive for the output of commands, from the card beside it."""

from pathlib import Path

from pydantic import ValidationError

from handlers.contract.card import Agreement, Card
from model_store import zoo


def card_of(folder: Path, name: str) -> Card | str | None:
    """The card beside the archive `name`; a word about it where it cannot be read, None where there is no archive."""
    path = folder / f"{name}.card.json"
    if not path.is_file() or not (folder / f"{name}.mar").is_file():
        return None
    try:
        return Card.read(path)
    except (ValidationError, OSError):
        return "unreadable card"


def outside_the_zoo(folder: Path) -> list[Card]:
    """The readable cards of archives that are not named as an entry of the zoo, by name."""
    names = sorted(path.name.removesuffix(".card.json") for path in folder.glob("*.card.json"))
    cards = [card_of(folder, name) for name in names if name not in zoo.names()]
    return [card for card in cards if isinstance(card, Card)]


def state(folder: Path, name: str) -> str:
    """Whether the archive `name` is built, and with which weights."""
    card = card_of(folder, name)
    if isinstance(card, Card):
        return weights(card)
    return card or "not built"


def weights(card: Card) -> str:
    """The state of the weights in one phrase."""
    return f"weights: {card.weights.state.value}"


def agreement(found: Agreement) -> str:
    """The agreement of bfloat16 with float32 in one phrase."""
    compared = {"top1": "best classes", "boxes": "boxes, weighted by score,", "class_map": "pixels"}[found.metric]
    return (
        f"{100 * found.agreement:.2f} % of {compared} as in float32, scores within {found.score_max_abs_diff:.2g}, "
        f"on {found.pictures} drawn pictures"
    )


def scores(published: dict[str, float]) -> str:
    """Published scores in one phrase."""
    return ", ".join(f"{metric} {value:g}" for metric, value in published.items()) or "none"
