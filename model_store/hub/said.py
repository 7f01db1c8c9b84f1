"""What the files of a folder say about a model, each with the place where it is said.

Keys are those of a definition (`KEYS`), without their tables, and `classes`: the number of classes. Two places that
contradict each other are an error.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_store.hub.errors import HubError

MAX_BYTES = 16 * 2**20  # of a configuration
KEYS: Mapping[str, tuple[str, ...]] = {
    "": ("base", "layout", "labels", "licence", "checkpoint"),
    "input": ("width", "height"),
    "preprocess": (
        "resize",
        "shorter_side_px",
        "interpolation",
        "antialias",
        "crop_offset",
        "channels",
        "mean",
        "std",
    ),
    "head": (
        "output_stride",
        "head_width",
        "rates",
        "align_corners",
        "score_threshold",
        "iou_threshold",
        "max_boxes",
    ),
}


class Said:
    """The keys that a folder gives.

    `notes` are for a person. `unclear`: keys that the person has to give, with the reason.
    """

    def __init__(self) -> None:
        self._values: dict[str, tuple[Any, str]] = {}
        self.notes: list[str] = []
        self.unclear: dict[str, str] = {}

    def say(self, key: str, value: Any, place: str) -> None:
        """Add a value unless it is None. Raises `HubError` where another place says another value."""
        if value is None:
            return
        known = self._values.get(key)
        if known is not None and not _same(known[0], value):
            raise HubError(f"{known[1]} says {key} {_shown(known[0])}, {place} says {_shown(value)}; correct one")
        self._values.setdefault(key, (value, place))

    def get(self, key: str) -> Any:
        """The value of a key, None where nothing says it."""
        return self._values.get(key, (None, ""))[0]

    def place(self, key: str) -> str:
        """Where a key is said."""
        return self._values[key][1]

    @property
    def missing(self) -> tuple[str, ...]:
        """Why the person has to give something, one reason per key."""
        return tuple(reason for key, reason in self.unclear.items() if key not in self._values)

    def content(self) -> dict[str, Any]:
        """The keys of a definition."""
        tables = {
            table: {key.removeprefix("head_"): self._values[key][0] for key in keys if key in self._values}
            for table, keys in KEYS.items()
        }
        return {**tables.pop(""), **{table: keys for table, keys in tables.items() if keys}}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `HubError`."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise HubError(f"{path}: over {MAX_BYTES // 2**20} MiB; is it a configuration?")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise HubError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise HubError(f"{path}: not JSON ({str(error).partition(chr(10))[0]})") from error
    if not isinstance(content, dict):
        raise HubError(f"{path}: holds {type(content).__name__}, not an object with keys")
    return content


def typed(content: Mapping[str, Any], key: str, kinds: type | tuple[type, ...], place: str) -> Any:
    """The value of a key, None where it is absent or null. Raises `HubError` where it is of another type."""
    value = content.get(key)
    if value is None:
        return None
    allowed = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        raise HubError(f"{place} has {_shown(value)}, not {' or '.join(kind.__name__ for kind in allowed)}")
    return value


def numbers(content: Mapping[str, Any], key: str, count: int, place: str) -> list[float] | None:
    """The list of so many numbers of a key, None where it is absent or null. Raises `HubError`."""
    value = content.get(key)
    if value is None:
        return None
    plain = isinstance(value, list | tuple) and len(value) == count
    if not plain or not all(isinstance(each, int | float) and not isinstance(each, bool) for each in value):
        raise HubError(f"{place} has {_shown(value)}, not {count} numbers")
    return list(value)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) or isinstance(other, float):
        return bool(abs(one - other) < 1e-6)
    return bool(one == other)


def _shown(value: Any) -> str:
    text = str(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."
