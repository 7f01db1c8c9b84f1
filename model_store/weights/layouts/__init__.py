"""Key layouts of published checkpoints, as ordered rename rules from their names to ours. One file per project family.

A layout turns the names of a project into those of `model_store.build.assemble.Network`. It never looks at the network:
`model_store.weights.load` reports what does not fit. A key that no rule touches keeps its name. Never imports torch.
"""

from collections.abc import Mapping
from types import MappingProxyType

from model_store.weights.layouts import emo, mobileformer, mobilevit, swiftformer
from model_store.weights.layouts.base import Layout, UnknownLayout, rename

__all__ = ["LAYOUTS", "Layout", "UnknownLayout", "get", "rename"]

_NATIVE = Layout(name="native", summary="our own names", rules=())

LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        layout.name: layout
        for layout in (_NATIVE, *mobilevit.LAYOUTS, *emo.LAYOUTS, *swiftformer.LAYOUTS, *mobileformer.LAYOUTS)
    }
)


def get(name: str) -> Layout:
    """The layout called `name`. Raises `UnknownLayout`."""
    if name not in LAYOUTS:
        raise UnknownLayout(f"no layout is called {name!r}; there are {', '.join(LAYOUTS)}")
    return LAYOUTS[name]
