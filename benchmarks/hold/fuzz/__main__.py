"""`python -m benchmarks.hold.fuzz TARGET --seconds 10 [--seed 0]`: fuzz one target, or `all`; `wire` for sockets."""

import argparse
import sys
from pathlib import Path

from benchmarks.hold.fuzz import runner, targets, wire
from benchmarks.hold.fuzz.target import MIB


def main() -> int:
    """Print one line per target. Returns 1 if something crashed, hung or grew too large."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hold.fuzz", description=__doc__)
    parser.add_argument("target", choices=[*targets.TARGETS, "all", "wire"])
    parser.add_argument("--seconds", type=float, default=10.0, help="per target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=runner.FOLDER)
    options = parser.parse_args()
    if options.target == "wire":
        found = wire.fuzz(options.seconds, options.seed, options.folder)
        print(found)
        return 0 if found.held else 1
    held = True
    for name, target in targets.TARGETS.items():
        if options.target not in (name, "all"):
            continue
        outcome = runner.fuzz(target, options.seconds, options.seed, options.folder)
        held &= outcome.held(target)
        print(
            f"{name:16} {outcome.inputs:8} inputs, {outcome.refused} refused, coverage {outcome.coverage}, "
            f"{len(outcome.crashes)} crashes, {len(outcome.hangs)} hangs, slowest {outcome.slowest_seconds:.2f} s, "
            f"memory {outcome.grown_bytes / MIB:.0f} of {target.memory_bytes / MIB:.0f} MiB"
        )
        for line in (*outcome.crashes, *outcome.hangs):
            print(f"    {line}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
