"""A gateway in a process of its own, with toy models and a fake engine, to be attacked.

`python -m benchmarks.hold.attacked_gateway LIMIT`: LIMIT is of `memory_limit`. Out: the gRPC and the HTTP address on
standard output; it ends when standard input does. The engine is that of the tests: an attack must not be measured
against the speed of a model.
"""

import asyncio
import sys
from pathlib import Path

from benchmarks.hold.memory_limit import limit_this_process

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))


async def _run() -> None:
    from fakes import running_gateway  # type: ignore[import-not-found]  # noqa: PLC0415 - its folder is in the path only now

    from service.core.process_memory import anonymous_bytes  # noqa: PLC0415

    async with running_gateway(process_bytes=anonymous_bytes, upload_timeout_seconds=5.0) as running:
        sys.stdout.write(f"{running.grpc} {running.http}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    limit_this_process(sys.argv[1])
    asyncio.run(_run())
