"""What a key layout is, and the name that it gives to a key. Never imports torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from handlers.contract.card import Preprocess

Rule = tuple[str, str]  # (pattern, replacement), as for `re.sub`


class UnknownLayout(LookupError):
    """No layout has this name."""


@dataclass(frozen=True)
class Layout:
    """The tensor names of one project, and what its weights expect where the entry of the zoo states something else.

    Attributes:
        name: unique, as `--layout` takes it.
        summary: the project and the models, in one line.
        rules: all run over each key, in order. Where a project keeps one tensor of ours in several, the renamed keys
            end in `#0`, `#1`, ..., and the parts are joined along dimension 0.
        ignored: keys that match one of these patterns are dropped (training-only parts).
        channel_order: replaces that of the entry: some architectures were published for RGB and for BGR input.
        preprocess: replaces that of the entry.
        backbone_options: replace those of the entry: SwiftFormer was published with two forms of attention, which
            the weights do not tell apart.

    """

    name: str
    summary: str
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()
    channel_order: Literal["RGB", "BGR"] | None = None
    preprocess: Preprocess | None = None
    backbone_options: Mapping[str, Any] = field(default_factory=dict)


def rename(key: str, layout: Layout) -> str | None:
    """Our name for a key of a checkpoint, or None where the layout ignores the key."""
    if any(re.search(pattern, key) for pattern in layout.ignored):
        return None
    for pattern, replacement in layout.rules:
        key = re.sub(pattern, replacement, key)
    return key
