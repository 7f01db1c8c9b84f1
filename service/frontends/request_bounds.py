"""The bound on strings in requests: a method in, the same method out, which refuses longer strings.

Knows proto messages, but not gRPC.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from google.protobuf.message import Message

from service.core.call_scope import CallScope
from service.core.errors import FieldOutOfRange

Method = Callable[[Any, CallScope], Awaitable[Any]]
"""Takes a proto request, returns a proto reply. Raises a `ServiceError`."""

LONGEST_STRING = 256  # characters in a string of a request, as the proto states


def bounded(method: Method) -> Method:
    """Return the method with its strings checked. It raises `FieldOutOfRange` before anything reads a longer one."""
    return partial(_bounded, method)


def _bounded(method: Method, request: Message, scope: CallScope) -> Awaitable[Any]:
    # Does not hold the request meanwhile.
    for field in request.DESCRIPTOR.fields:
        if field.type == field.TYPE_STRING and len(getattr(request, field.name)) > LONGEST_STRING:
            raise FieldOutOfRange(
                f"{field.name} has more than {LONGEST_STRING} characters; send a name from ListModels",
                metadata={"field": field.name},
            )
    return method(request, scope)
