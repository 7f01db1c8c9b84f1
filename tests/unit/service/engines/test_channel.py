"""A channel that sends nothing to another user's process, over real sockets with made-up owners."""

import os
from collections.abc import AsyncIterator

import grpc.aio
import pytest

from service.core.errors import BackendUnavailable
from service.engines.torchserve.channel import OwnedChannel

METHOD = "/service/method"


class Listener:
    """A gRPC server that counts the calls it gets."""

    def __init__(self) -> None:
        self.calls = 0
        self.users: frozenset[int] | None = frozenset({os.getuid()})
        self.server = grpc.aio.server()
        handlers = {"method": grpc.unary_unary_rpc_method_handler(self._answer)}
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("service", handlers),))
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    async def _answer(self, request: bytes, context: object) -> bytes:
        self.calls += 1
        return request

    def owners(self, port: int) -> frozenset[int] | None:
        assert port == self.port
        return self.users


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    made = Listener()
    await made.server.start()
    yield made
    await made.server.stop(None)


def channel_to(listener: Listener, *, owned: bool = True) -> OwnedChannel:
    return OwnedChannel(f"127.0.0.1:{listener.port}", owned=owned, max_message_bytes=10**6, users=listener.owners)


async def ask(channel: OwnedChannel) -> bytes:
    await channel.connect()
    reply: bytes = await channel.channel.unary_unary(METHOD)(b"x", timeout=30)
    return reply


@pytest.mark.parametrize("users", [frozenset({os.getuid()}), None], ids=["ours", "unknown"])
async def test_a_process_of_this_user_gets_the_calls(listener: Listener, users: frozenset[int] | None) -> None:
    listener.users = users
    channel = channel_to(listener)
    assert [await ask(channel) for _ in range(2)] == [b"x", b"x"]
    await channel.close()


@pytest.mark.parametrize("others", [frozenset({12345}), frozenset({os.getuid(), 12345})], ids=["other", "both"])
async def test_a_process_of_another_user_gets_nothing(listener: Listener, others: frozenset[int]) -> None:
    listener.users = others
    channel = channel_to(listener)
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match="another user"):
            await ask(channel)
    assert listener.calls == 0
    listener.users = frozenset({os.getuid()})
    assert await ask(channel) == b"x"
    await channel.close()


async def test_who_took_the_port_while_the_channel_connected_gets_nothing(listener: Listener) -> None:
    answers = [frozenset({os.getuid()}), frozenset({12345})]
    channel = OwnedChannel(
        f"127.0.0.1:{listener.port}", owned=True, max_message_bytes=10**6, users=lambda port: answers.pop(0)
    )
    with pytest.raises(BackendUnavailable, match="another user"):
        await ask(channel)
    assert (listener.calls, answers) == (0, [])


async def test_the_owner_is_checked_again_after_the_connection_was_lost(listener: Listener) -> None:
    channel = channel_to(listener)
    await ask(channel)
    await listener.server.stop(None)
    taken = grpc.aio.server()  # another user's server at the same port
    assert taken.add_insecure_port(f"127.0.0.1:{listener.port}") == listener.port
    await taken.start()
    listener.users = frozenset({12345})
    with pytest.raises(BackendUnavailable, match="another user"):
        await ask(channel)
    await channel.close()
    await taken.stop(None)


async def test_nobody_listens(listener: Listener) -> None:
    listener.users = frozenset()
    with pytest.raises(BackendUnavailable, match="does not listen"):
        await ask(channel_to(listener))


async def test_a_server_that_another_program_started_is_not_checked(listener: Listener) -> None:
    listener.users = frozenset({12345})
    channel = channel_to(listener, owned=False)
    assert await ask(channel) == b"x"
    await channel.close()
