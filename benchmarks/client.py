"""The load generator in Python, a process of its own: `python -m benchmarks.client PLAN RECORDS`, started by `load`.

In: a file with a pickled plan. Out: a file with pickled `Outcomes`.

Open loop: every request is sent at its planned time, also while earlier requests are unanswered. Its latency counts
from the planned time, so a slow server cannot slow the load down (no coordinated omission). Closed loop: each of
`clients` connections sends the next request when the last one is answered. It is used on machines without h2load.
"""

import asyncio
import contextlib
import gc
import pickle
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import grpc
from grpc import aio

from benchmarks.outcomes import Outcome, RequestRecord, grpc_outcome, http_outcome, in_time
from benchmarks.plans import ClosedPlan, OpenPlan, Outcomes
from benchmarks.target import Target

OPEN_LOOP_CHANNELS = 4
_CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # a connection per channel
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
)


class _Caller(Protocol):
    """Sends requests to one target."""

    async def call(self, timeout_seconds: float) -> Outcome: ...

    async def close(self) -> None: ...


class _GrpcCaller:
    def __init__(self, target: Target) -> None:
        self._channel = aio.insecure_channel(f"{target.host}:{target.port}", options=_CHANNEL_OPTIONS)
        self._method: aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(target.path)
        self._body = target.body

    async def call(self, timeout_seconds: float) -> Outcome:
        try:
            await self._method(self._body, timeout=timeout_seconds)
        except aio.AioRpcError as error:
            return grpc_outcome(error.code().name)
        return grpc_outcome(grpc.StatusCode.OK.name)

    async def close(self) -> None:
        await self._channel.close()


class _HttpCaller:
    """Sends requests over keep-alive connections, opened as needed.

    A connection whose answer did not come in time is closed, as HTTP clients do.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        head = (
            f"POST {target.path} HTTP/1.1\r\nhost: {target.host}:{target.port}\r\n"
            f"content-type: {target.content_type}\r\ncontent-length: {len(target.body)}\r\n\r\n"
        )
        self._request = head.encode() + target.body
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def call(self, timeout_seconds: float) -> Outcome:
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(timeout_seconds):
                if self._idle:
                    reader, writer = self._idle.pop()
                else:
                    reader, writer = await asyncio.open_connection(self._target.host, self._target.port)
                writer.write(self._request)
                status, keep = await _read_reply(reader)
        except TimeoutError:
            outcome = Outcome.MISSED
        except (OSError, EOFError, ValueError):
            outcome = Outcome.FAILED
        else:
            if keep:
                self._idle.append((reader, writer))
            else:
                writer.close()
            return http_outcome(status)
        if writer is not None:
            writer.close()
        return outcome

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


async def _read_reply(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Read one reply. Returns its status and whether the connection can be used again.

    Raises `EOFError` when the connection ends early and `ValueError` when the bytes are no HTTP reply.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    status = int(head[0].split()[1])
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in head[1:])}
    if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            await reader.readexactly(size + 2)
        await reader.readuntil(b"\r\n")
    else:
        await reader.readexactly(int(fields[b"content-length"]) if b"content-length" in fields else 0)
    return status, fields.get(b"connection", b"").lower() != b"close"


def _caller(target: Target) -> _Caller:
    return _GrpcCaller(target) if target.protocol == "grpc" else _HttpCaller(target)


async def run_open(
    plan: OpenPlan,
    *,
    caller: Callable[[Target], _Caller] = _caller,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Outcomes:
    """Send the requests of the plan at their times and wait for the last answers.

    `caller` makes the connection to a target. `clock` returns seconds. `sleep` waits for some seconds.
    """
    callers = [caller(target) for target in plan.targets for _ in range(OPEN_LOOP_CHANNELS)]
    records: list[RequestRecord] = []
    tasks: set[asyncio.Task[None]] = set()
    cpu_before = time.process_time()
    began_at = clock()

    async def one(number: int, due_seconds: float) -> None:
        lag_seconds = clock() - began_at - due_seconds
        outcome = await callers[number % len(callers)].call(max(plan.deadline_seconds - lag_seconds, 0.0))
        records.append(
            in_time(
                RequestRecord(due_seconds, lag_seconds, outcome, clock() - began_at - due_seconds),
                plan.deadline_seconds,
            )
        )

    sent = 0
    for number, due_seconds in enumerate(plan.arrivals_seconds):
        await sleep(
            max(began_at + due_seconds - clock(), 0.0)
        )  # also when late: the calls in flight need the event loop
        task = asyncio.ensure_future(one(number, due_seconds))
        sent += 1
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    await asyncio.gather(*(one_caller.close() for one_caller in callers))
    return Outcomes(sent=sent, records=tuple(records), cpu_seconds=time.process_time() - cpu_before)


async def run_closed(
    plan: ClosedPlan,
    *,
    caller: Callable[[Target], _Caller] = _caller,
    clock: Callable[[], float] = time.perf_counter,
) -> Outcomes:
    """Send requests from every client. Only requests that end in the measured time are recorded."""
    cpu_before = time.process_time()
    began_at = clock()
    counts_from_at = began_at + plan.warm_up_seconds
    end_at = counts_from_at + plan.seconds
    records: list[RequestRecord] = []

    async def client(number: int) -> None:
        one_caller = caller(plan.targets[number % len(plan.targets)])
        while (sent_at := clock()) < end_at:
            outcome = await one_caller.call(30.0)
            if counts_from_at <= clock() < end_at:
                records.append(RequestRecord(sent_at - began_at, 0.0, outcome, clock() - sent_at))
        await one_caller.close()

    await asyncio.gather(*(client(number) for number in range(plan.clients)))
    return Outcomes(sent=len(records), records=tuple(records), cpu_seconds=time.process_time() - cpu_before)


def main(plan_path: str, records_path: str) -> None:
    """Run the plan in one file and write its outcomes to another."""
    plan = pickle.loads(Path(plan_path).read_bytes())  # noqa: S301 - written by our own parent
    gc.set_threshold(100_000)  # a garbage collection would show as lag
    with contextlib.suppress(KeyboardInterrupt):
        outcomes = asyncio.run(run_open(plan) if isinstance(plan, OpenPlan) else run_closed(plan))
        Path(records_path).write_bytes(pickle.dumps(outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
