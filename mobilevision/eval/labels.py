"""Names of classes in a data set, and the labels of a model: which is which, and what to say where they differ."""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from mobilevision.eval.errors import UnusableModel

_LISTED = 5
_LONGEST_NAME = 60  # characters of a name that are printed; a broken file may hold any text as a name


def match(names: Iterable[str], labels: Sequence[str]) -> dict[str, int]:
    """The label of each name that is one, by its number. Names that are no label are left out.

    Upper and lower case, and spaces, "_" and "-" are told apart only where that is needed to find one label.
    A name that stands for several labels is left out.
    """
    exact, loose = _numbers(labels, str), _numbers(labels, _plain)
    found = {}
    for name in names:
        numbers = exact.get(name) or loose.get(_plain(name), [])
        if len(numbers) == 1:
            found[name] = numbers[0]
    return found


def match_all(names: Iterable[str], labels: Sequence[str], of_what: str) -> dict[str, int]:
    """The label of every name, as `match` finds it. `of_what` says where the names come from.

    Raises `UnusableModel` where a name is no label of the model, or where two names are one label.
    """
    listed = list(dict.fromkeys(names))
    found = match(listed, labels)
    if unknown := sorted(set(listed) - set(found)):
        raise UnusableModel(f"{of_what} that the model has no label for: {with_nearest(unknown, labels)}")
    twice = [number for number, count in Counter(found.values()).items() if count > 1]
    if twice:
        same = [name for name, number in found.items() if number == twice[0]]
        raise UnusableModel(f"{of_what}: {some(same)} are one label of the model, {labels[twice[0]]!r}")
    return found


def with_nearest(unknown: Sequence[str], labels: Sequence[str]) -> str:
    """Text: the first unknown names, each with the nearest label where one is near; else the labels that there are."""
    counts = Counter(labels)
    parts, near = [], False
    for name in unknown[:_LISTED]:
        if counts[name] > 1:
            parts.append(f"{short(name)} (the model has {counts[name]} labels of this name)")
            continue
        nearest = difflib.get_close_matches(name[:_LONGEST_NAME], labels, n=1)
        parts.append(f"{short(name)} (did you mean {short(nearest[0])}?)" if nearest else short(name))
        near = near or bool(nearest)
    more = _more(len(unknown))
    known = "" if near else f"; the model's {len(labels)} labels are {some(labels)}"
    return ", ".join(parts) + more + known


def unique(labels: Sequence[str]) -> list[str]:
    """The labels, with the number behind each name that occurs more than once ("crane (134)")."""
    counts = Counter(labels)
    return [name if counts[name] == 1 else f"{name} ({number})" for number, name in enumerate(labels)]


def some(names: Iterable[str]) -> str:
    """Text: the first five names, and how many more there are."""
    listed = list(names)
    return ", ".join(short(name) for name in listed[:_LISTED]) + _more(len(listed))


def _more(count: int) -> str:
    return f" and {count - _LISTED} more" if count > _LISTED else ""


def short(name: str) -> str:
    """A name on one line, cut off where it is longer than a name should be."""
    plain = "".join(character if character.isprintable() else "?" for character in name[: _LONGEST_NAME + 1])
    return plain if len(plain) <= _LONGEST_NAME else plain[:_LONGEST_NAME] + "…"


def _numbers(labels: Sequence[str], form: Callable[[str], str]) -> Mapping[str, list[int]]:
    numbers: dict[str, list[int]] = {}
    for number, label in enumerate(labels):
        numbers.setdefault(form(label), []).append(number)
    return numbers


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").split()).casefold()
