"""Which models are not loaded for now, because their workers cannot load them.

In: which models failed and which were loaded, on a clock that the caller gives. Out: when to try again. A model that
fails again and again is tried less and less often, but never given up. Never loads a model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class _Held:
    version: str
    wait_seconds: float
    due_at: float
    trying: bool = False


class Quarantine:
    """The models that are held back. The wait grows from `first_seconds` to `last_seconds`."""

    def __init__(self, *, first_seconds: float, last_seconds: float, clock: Callable[[], float]) -> None:
        self._first_seconds = first_seconds
        self._last_seconds = last_seconds
        self._clock = clock
        self._held: dict[str, _Held] = {}

    @property
    def held(self) -> Mapping[str, str]:
        """The version of each model that must not be loaded now."""
        return {model: held.version for model, held in self._held.items() if not held.trying}

    def failed(self, model: str, version: str) -> float:
        """Hold a model back, and return for how many seconds. Twice as long as the last time for the same version."""
        before = self._held.get(model)
        wait_seconds = self._first_seconds
        if before is not None and before.version == version:
            wait_seconds = min(2 * before.wait_seconds, self._last_seconds)
        self._held[model] = _Held(version, wait_seconds, self._clock() + wait_seconds)
        return wait_seconds

    def loaded(self, model: str) -> bool:
        """A model has ready workers. Returns whether it was in quarantine."""
        return self._held.pop(model, None) is not None

    def due(self) -> list[str]:
        """The models to try now. They are not held from now on, until they fail again."""
        now = self._clock()
        found = [model for model, held in self._held.items() if not held.trying and held.due_at <= now]
        for model in found:
            self._held[model].trying = True
        return found

    def trying(self, model: str) -> bool:
        """Whether the model is being tried now."""
        return model in self._held and self._held[model].trying
