"""Label files of one's own: text or JSON in, a checked `LabelSet` out.

Text: one label per line, in class order. JSON: a list of names; a list of objects with `name` and, for all or none,
`color` (`#rrggbb`); or an object from class number to name (`id2label` of transformers), numbers 0 to N-1.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_store.labels import LabelSet

MAX_BYTES = 16 * 2**20
MAX_LABELS = 100_000
MAX_CHARACTERS = 200  # of one label
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class LabelError(ValueError):
    """A label file is wrong. The message names the file, the line and the remedy."""


def read_file(path: Path) -> LabelSet:
    """Read the labels in a text or JSON file. Raises `LabelError`."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise LabelError(f"{path}: over {MAX_BYTES // 2**20} MiB; is it a file of labels?")
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows begin a file with a byte order mark
    except OSError as error:
        raise LabelError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise LabelError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if text.lstrip().startswith(("[", "{")) and path.suffix.lower() == ".json":
        names, colours = _from_json(text, path)
    else:
        names, colours = _from_text(text), ()
    return LabelSet(name=path.name, own=checked(names, where=str(path)), colours=colours)


def checked(names: Sequence[str], *, where: str) -> tuple[str, ...]:
    """Return the labels if they can be served. Raises `LabelError`, which begins with `where`."""
    if not names:
        raise LabelError(f"{where}: no labels; write one per line, in class order")
    if len(names) > MAX_LABELS:
        raise LabelError(f"{where}: {len(names):,} labels; at most {MAX_LABELS:,} are served")
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise LabelError(f"{where}: label {number} is empty; every class needs a name")
        if len(name) > MAX_CHARACTERS:
            raise LabelError(f"{where}: label {number} has {len(name)} characters; at most {MAX_CHARACTERS}")
        if _CONTROL.search(name):
            raise LabelError(f"{where}: label {number} has a control character")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        places = [str(number) for number, name in enumerate(names, 1) if name == twice[0]]
        more = f" ({len(twice)} labels are there more than once)" if len(twice) > 1 else ""
        raise LabelError(f"{where}: labels {' and '.join(places[:4])} are both {twice[0]!r}{more}; names must differ")
    return tuple(names)


def _from_text(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    while lines and not lines[-1]:  # empty lines at the end are no labels
        lines.pop()
    return lines


def _from_json(text: str, path: Path) -> tuple[list[str], tuple[str, ...]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LabelError(f"{path}: not JSON: {error}") from error
    if isinstance(content, dict):
        return _by_number(content, path), ()
    if all(isinstance(item, str) for item in content):
        return content, ()
    if all(isinstance(item, dict) and isinstance(item.get("name"), str) for item in content):
        colours = [item.get("color") for item in content if "color" in item]
        if colours and len(colours) != len(content):
            raise LabelError(f"{path}: {len(colours)} of {len(content)} labels have a color; give all or none")
        wrong = next((colour for colour in colours if not isinstance(colour, str) or not _COLOUR.fullmatch(colour)), "")
        if wrong:
            raise LabelError(f"{path}: color {wrong!r} is not of the form #rrggbb")
        return [item["name"] for item in content], tuple(colours)
    raise LabelError(f'{path}: neither a list of names, nor of objects such as {{"name": "cat", "color": "#ff8800"}}')


def _by_number(content: dict[str, Any], path: Path) -> list[str]:
    try:
        by_number = {int(key): value for key, value in content.items()}
    except ValueError as error:
        raise LabelError(f'{path}: keys must be class numbers, such as "0"') from error
    if sorted(by_number) != list(range(len(content))):
        raise LabelError(f"{path}: class numbers must be 0 to {len(content) - 1}, each once")
    names = [by_number[number] for number in range(len(content))]
    if not all(isinstance(name, str) for name in names):
        raise LabelError(f"{path}: every class number needs a name")
    return names
