"""The gRPC server: VisionService, health and reflection on one port.

In: the settings and the handlers of the services. Out: a gRPC server, not started yet. Never constructs what answers.
"""

import math
from collections.abc import Mapping

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from service.access.control import AccessControl
from service.core.settings import Settings
from service.frontends.grpc.aio_server import AioServer, AtOnce
from service.frontends.grpc.guarded import GuardedHealth, GuardedReflection
from service.frontends.grpc.method_handlers import METHODS, SERVICE
from service.frontends.grpc.uploads import UploadGate

_KEEPALIVE_MILLISECONDS = 10_000  # clients may send pings as often as this
_KEEPALIVE_TIME_MILLISECONDS = 60_000  # connections are asked whether they are alive after so much silence
_KEEPALIVE_TIMEOUT_MILLISECONDS = 20_000  # and closed if they do not answer
_HANDSHAKE_MILLISECONDS = 10_000  # for TLS and the first frames of HTTP/2; gRPC's default is two minutes
_ALL_PENDING = 2**30
_REPLY_SECONDS = 5.0  # for the last reply on a connection that is too old


def grpc_server(
    settings: Settings,
    *,
    vision_service: grpc.GenericRpcHandler,
    at_once: Mapping[str, AtOnce],
    health_service: health_pb2_grpc.HealthServicer,
    access: AccessControl,
    uploads: UploadGate,
    shares_port: bool,
) -> aio.Server:
    """Make the server. Requests of health arrive through `uploads`. `access` says who may use health and reflection.
    `at_once` refuses calls of methods of VisionService before their requests arrive.

    `shares_port`: other gateway processes of this server listen on the same port.
    """
    server = AioServer(  # type: ignore[abstract]  # the stubs say so, grpcio does not
        guarded=uploads.guarded,
        options=[
            # Pictures that are somewhat too large get our error, not gRPC's.
            ("grpc.max_receive_message_length", _message_bytes(settings)),
            ("grpc.max_send_message_length", -1),
            # gRPC's default would let an unrelated second gateway take half of the connections.
            ("grpc.so_reuseport", int(shares_port)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_MILLISECONDS),
            *_connections(settings),
            *_connection_age(settings),
        ],
    )
    server.add_service(SERVICE, METHODS, vision_service, at_once)
    if settings.health_access == "callers":
        health_service = GuardedHealth(health_service, access)
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    _add_reflection(settings, server, access)
    return server


def _add_reflection(settings: Settings, server: aio.Server, access: AccessControl) -> None:
    health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    services = (SERVICE, health_name, reflection.SERVICE_NAME)
    if settings.reflection_access == "callers":
        guarded = GuardedReflection(services, access)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(guarded, server)  # type: ignore[no-untyped-call]
    elif settings.reflection_access == "open":
        reflection.enable_server_reflection(services, server)


def _message_bytes(settings: Settings) -> int:
    """Return the size from which gRPC refuses messages itself."""
    return max(2 * settings.max_image_bytes, settings.max_call_pictures_megabytes * 2**20) + 2**20


def _connections(settings: Settings) -> tuple[tuple[str, int], ...]:
    """Return options that bound connections and what one connection may hold."""
    return (
        # Further connections are closed at once. gRPC counts each listening address alone; there is one.
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_concurrent_streams", settings.max_streams_per_connection),
        ("grpc.max_connection_idle_ms", math.ceil(settings.max_connection_idle_seconds * 1000)),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MILLISECONDS),
        ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MILLISECONDS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MILLISECONDS),
        # Without it, gRPC lets a fast connection send megabytes before a request is read.
        ("grpc.http2.bdp_probe", 0),
        # gRPC cancels calls without a word above 1000 that wait for the event loop. All get to the event loop, which
        # refuses them with a reason and a time to retry. Connections and streams bound their number.
        ("grpc.server.max_pending_requests", _ALL_PENDING),
        ("grpc.server.max_pending_requests_hard_limit", _ALL_PENDING),
    )


def _connection_age(settings: Settings) -> tuple[tuple[str, int], ...]:
    """Return options that limit the age of connections. gRPC varies the age by a tenth to spread reconnects."""
    if not settings.max_connection_age_seconds:
        return ()
    return (
        ("grpc.max_connection_age_ms", math.ceil(settings.max_connection_age_seconds * 1000)),
        # Calls in progress end at their deadlines, and replies get some time. Health watches never end, so gRPC closes
        # them after this time.
        ("grpc.max_connection_age_grace_ms", math.ceil(_longest_call_seconds(settings) * 1000)),
    )


def _longest_call_seconds(settings: Settings) -> float:
    """Return how long a call can take: its request arrives, its deadline passes, its reply is sent."""
    return settings.upload_timeout_seconds + settings.max_deadline_seconds + _REPLY_SECONDS
