"""The names in the client certificate of a connection, which gRPC verified with `tls_client_ca`.

In: the context of a call. Out: names, best first: the common name of the subject, then the subject alternative names in
the order of the certificate. Never verifies anything.
"""

from typing import Any

from grpc import aio

_COMMON_NAME = "x509_common_name"
_ALTERNATIVE_NAME = "x509_subject_alternative_name"


def certificate_names(context: "aio.ServicerContext[Any, Any]") -> tuple[str, ...]:
    """Return the names, empty where the connection has no client certificate."""
    properties = context.auth_context()
    found = (*properties.get(_COMMON_NAME, ()), *properties.get(_ALTERNATIVE_NAME, ()))
    return tuple(name.decode("utf-8", "replace") for name in found if name)
