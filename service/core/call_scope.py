"""One call, independent of its protocol: who calls, until when, and what is reported about it.

`service.frontends.call` makes a `CallScope` for each call. The pipeline reads its deadline and fills in its record.
"""

from collections.abc import Callable
from dataclasses import dataclass

from service.core.types import RequestRecord

ANONYMOUS = ""


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class CallScope:
    """Identity, deadline and record of one call.

    `deadline_at` is a reading of the event loop's clock. `flow` is what shares queues fairly with others, as in the
    fair queues of Kubernetes: the authenticated caller, or the host of a call without one. `models` are the names of
    the models that the caller may use, None: all. `record` collects what is reported once, when the call ends.
    `picture_decoded` is called when the encoded picture is not needed any more.
    """

    record: RequestRecord
    deadline_at: float
    flow: str = ANONYMOUS
    models: frozenset[str] | None = None
    picture_decoded: Callable[[], None] = _nothing

    @property
    def request_id(self) -> str:
        """The id of the call, from the caller or made by the front."""
        return self.record.request_id
