"""A whole gateway with toy models in a process of its own, for `wire`: `python -m benchmarks.hold.fuzz.wire_server`.

Prints the gRPC address and the HTTP address, and serves until standard input ends. Its log lines go to standard error,
one JSON object each.
"""

import asyncio
import sys
from pathlib import Path

from service.core import foreign_output, logs

TESTS = Path(__file__).parents[3] / "tests"  # the fake engine of the tests is there


async def serve() -> None:
    """Serve until standard input ends."""
    sys.path.insert(0, str(TESTS))
    from fakes import running_gateway  # type: ignore[import-not-found]

    async with running_gateway(max_image_bytes=2**21) as running:
        print(running.grpc, running.http, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    logs.configure(level="info", log_format="json")
    with foreign_output.logged():
        asyncio.run(serve())
