"""A raw HTTP/2 client for callers that no gRPC library would play: half-sent requests, replies that nobody reads.

In: an address and what to send. Out: what the server answered. One thread, blocking sockets. Never waits longer than
its time-out.
"""

import socket
import struct
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

_READ_BYTES = 2**16
_PREFIX = struct.Struct(">BI")  # not compressed, length of the message


@dataclass(slots=True)
class Answer:
    """What came back on one stream. `status` is the value of grpc-status, None while there is none."""

    status: int | None = None
    message: str = ""
    trailers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    reset: int | None = None

    @property
    def ended(self) -> bool:
        """Whether the server ended the stream."""
        return self.status is not None or self.reset is not None


class RawConnection:
    """One connection without TLS. `answers` has what came back, by stream. `window_bytes` is how much of a reply
    each stream may send before it is read. `source` is the address that it comes from; empty: any.

    Raises `OSError` where the server closes the connection.
    """

    def __init__(
        self, address: str, *, timeout_seconds: float = 10.0, window_bytes: int | None = None, source: str = ""
    ) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=timeout_seconds, source_address=(source, 0))
        self._timeout_seconds = timeout_seconds
        self._host = address
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.answers: dict[int, Answer] = {}
        self.closed = False
        self._makes_room = window_bytes is None
        self._settings_came = False
        self.asked_to_leave = False  # the server sent GOAWAY
        self._h2.initiate_connection()
        if window_bytes is not None:
            self._h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window_bytes})
        self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, method: str, *, timeout: str | None = None, end: bool = False) -> int:
        """Begin a call and return its stream. `method` is a path. `timeout` is a grpc-timeout such as `5S`."""
        stream = self._h2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", self._host),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ]
        if timeout is not None:
            headers.append(("grpc-timeout", timeout))
        self._h2.send_headers(stream, headers, end_stream=end)
        self.answers[stream] = Answer()
        self._flush()
        return stream

    def send(self, stream: int, data: bytes, *, end: bool = False, wait_seconds: float | None = None) -> int:
        """Send bytes of a request body as the server makes room for them. Returns how many it took in time."""
        until = time.monotonic() + (self._timeout_seconds if wait_seconds is None else wait_seconds)
        sent = 0
        while sent < len(data) and not self.answers[stream].ended:
            room = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size, len(data) - sent)
            if room > 0:
                self._h2.send_data(stream, data[sent : sent + room])
                sent += room
                self._flush()
            elif time.monotonic() > until or not self.read(max(until - time.monotonic(), 0.001)):
                return sent
        if end and sent == len(data) and not self.answers[stream].ended:
            self._h2.end_stream(stream)
            self._flush()
        return sent

    def reset(self, stream: int) -> None:
        """Cancel a call."""
        self._h2.reset_stream(stream, 8)
        self._flush()

    def read(self, timeout_seconds: float) -> bool:
        """Read what has arrived, waiting for it if nothing has. False: nothing came, or the connection ended."""
        self._socket.settimeout(timeout_seconds)
        try:
            data = self._socket.recv(_READ_BYTES)
        except TimeoutError:
            return False
        finally:
            self._socket.settimeout(self._timeout_seconds)
        if not data:
            self.closed = True
            return False
        try:
            events = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError:  # h2 takes nothing after GOAWAY, not even the ping that follows it
            self.closed = self.asked_to_leave = True
            return False
        for event in events:
            self._note(event)
        self._flush()
        return True

    def wait(self, stream: int, timeout_seconds: float) -> Answer:
        """Return the answer of a stream: whole, or what there is of it when the time is up."""
        until = time.monotonic() + timeout_seconds
        answer = self.answers[stream]
        while not answer.ended and not self.closed and (left := until - time.monotonic()) > 0:
            self.read(left)
        return answer

    @property
    def max_streams(self) -> int | None:
        """Streams that the server allows at once; None before its settings have come."""
        return self._h2.remote_settings.max_concurrent_streams if self._settings_came else None

    def close(self) -> None:
        """Close the socket without a farewell."""
        self._socket.close()

    def _note(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self.asked_to_leave = True
            return
        if isinstance(event, h2.events.RemoteSettingsChanged):
            self._settings_came = True
            return
        answer = self.answers.get(getattr(event, "stream_id", None) or 0)
        if answer is None:
            return
        if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            fields = {str(name): str(value) for name, value in event.headers or ()}
            answer.trailers |= fields
            if "grpc-status" in fields:
                answer.status, answer.message = int(fields["grpc-status"]), fields.get("grpc-message", "")
        elif isinstance(event, h2.events.DataReceived):
            answer.body += event.data
            if self._makes_room and event.flow_controlled_length:
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            answer.reset = int(event.error_code)

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data:
            self._socket.sendall(data)


def framed(message: bytes, *, stated_bytes: int | None = None) -> bytes:
    """Return a gRPC message with its prefix, which may state another length than the message has."""
    return _PREFIX.pack(0, len(message) if stated_bytes is None else stated_bytes) + message
