"""A gRPC channel to one of TorchServe's APIs that sends nothing to a process of another user.

In: an address. Out: a channel that is connected. After TorchServe has ended, any local user may listen at its port, and
would get tokens and pictures. So a channel to a TorchServe of our own connects only here, after the owner of the port
was checked, and the owner is checked again once it is connected. A channel to a TorchServe that another program
started connects by itself: its owner may be another user.
"""

import asyncio
import os
from collections.abc import Callable

import grpc
import grpc.aio

from service.core.errors import BackendUnavailable
from service.engines.torchserve.listener import listening_users

CONNECT_SECONDS = 2.0
CLOSE_SECONDS = 10.0  # for calls to a TorchServe that has ended

Users = Callable[[int], frozenset[int] | None]


class OwnedChannel:
    """One channel. `owned`: the process that listens must be of this user. For one event loop."""

    def __init__(self, address: str, *, owned: bool, max_message_bytes: int, users: Users = listening_users) -> None:
        self._address = address
        self._owned = owned
        self._users = users
        self._connecting = asyncio.Lock()
        self._options = (
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.max_receive_message_length", max_message_bytes),
            # Connect to a restarted TorchServe within a second; gRPC's default grows to two minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            # A retry inside gRPC would connect again unchecked.
            ("grpc.enable_retries", 0),
            # Loopback or one pod: calls must not go to a proxy that the environment names.
            ("grpc.enable_http_proxy", 0),
        )
        self.channel = grpc.aio.insecure_channel(address, options=self._options)

    async def connect(self) -> None:
        """Make sure that a call reaches TorchServe. Call it before each call.

        Raises `BackendUnavailable` if nobody of this user listens.
        """
        if not self._owned or self._connected:
            return
        async with self._connecting:
            if self._connected:  # by another call, meanwhile
                return
            await self._check_owner()
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await self._connect()
            except TimeoutError as error:
                raise BackendUnavailable(f"TorchServe does not accept a connection at {self._address}") from error
            await self._check_owner()

    @property
    def _connected(self) -> bool:
        return self.channel.get_state() is grpc.ChannelConnectivity.READY

    async def _connect(self) -> None:
        while (state := self.channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
            await self.channel.wait_for_state_change(state)

    async def _check_owner(self) -> None:
        port = int(self._address.rpartition(":")[2])
        users = await asyncio.to_thread(self._users, port)
        if users is None or users == {os.getuid()}:  # None: this system does not tell
            return
        if not users:
            raise BackendUnavailable(f"TorchServe does not listen at {self._address}")
        await self.channel.close()  # it may be connected
        self.channel = grpc.aio.insecure_channel(self._address, options=self._options)
        raise BackendUnavailable(f"a process of another user listens at TorchServe's address {self._address}")

    async def close(self, grace_seconds: float | None = None) -> None:
        """Close the connection. Calls on their way are cancelled after `grace_seconds`."""
        await self.channel.close(grace_seconds)
