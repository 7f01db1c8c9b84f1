"""Start-up time and idle memory: `python -m benchmarks.startup [--help]`.

Each system is started several times, in turn. The measured time ends with the first correct answer to a picture, not
when the port opens. Memory is read after some seconds without requests. The sizes of container images come from podman
or docker. An image that is not there has the reason in the file.
"""

import argparse
import dataclasses
import json
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from benchmarks import results
from benchmarks.figures import spread
from benchmarks.limit import Shape
from benchmarks.options import add_common, archive_of, head_of, make_console, parse, participants_of
from benchmarks.pairs import add_pair, asked_pair
from benchmarks.peers.environments import PeerUnavailable
from benchmarks.plot import plot_startup
from benchmarks.processes import DidNotStart
from benchmarks.systems import Setup, answered_by, prepare, running
from benchmarks.target import picture
from model_store.build.archive import read_card

REST_SECONDS = 3.0
IMAGE_NAME = "mobilevision"


@dataclass
class _Measured:
    head: results.Head
    participants: dict[str, results.Participant] = field(default_factory=dict)
    starts: list[results.Start] = field(default_factory=list)

    def result(self, images: list[results.ImageSize], *, complete: bool) -> results.StartupResult:
        systems = dict.fromkeys(start.system for start in self.starts)

        def median(system: str, name: str) -> float:
            return spread([getattr(start, name) for start in self.starts if start.system == system]).median

        return results.StartupResult(
            head=dataclasses.replace(self.head, complete=complete),
            participants=list(self.participants.values()),
            starts=self.starts,
            median_seconds={system: median(system, "seconds_to_first_answer") for system in systems},
            idle_pss_mib={system: median(system, "idle_pss_mib") for system in systems},
            images=images,
        )


def measure_start(
    name: str, archive: Path, setup: Setup, rest_seconds: float
) -> tuple[results.Start, results.Participant]:
    """Start a system once. Raises `PeerUnavailable`, `DidNotStart`."""
    with running(name, [archive], setup, picture()) as server:
        time.sleep(rest_seconds)
        memory = server.group.memory()
        start = results.Start(
            system=name,
            model=archive.stem,
            seconds_to_first_answer=server.start_seconds,
            cpu_seconds_to_first_answer=server.start_cpu_seconds,
            idle_pss_mib=sum(process.pss_mib for process in memory),
            idle_rss_mib=sum(process.rss_mib for process in memory),
            processes=len(memory),
        )
        pair = answered_by(server.ask(read_card(archive)))
        return start, results.Participant(
            name,
            archive.stem,
            version=server.version,
            shape=str(setup.shape),
            engine=pair.engine,
            dtype=pair.dtype,
        )


def image_sizes() -> list[results.ImageSize]:
    """Sizes of our container images on this machine."""
    tool = shutil.which("podman") or shutil.which("docker")
    if tool is None:
        return [results.ImageSize(IMAGE_NAME, None, "neither podman nor docker is installed here")]
    command = [tool, "images", "--format", "{{.Repository}}:{{.Tag}}"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    images = sorted({line for line in listed.stdout.split() if IMAGE_NAME in line})
    if not images:
        why = listed.stderr.strip()[-300:] or f"no image has {IMAGE_NAME} in its name; build it first"
        return [results.ImageSize(IMAGE_NAME, None, why)]
    sizes = []
    for image in images:
        inspected = subprocess.run([tool, "image", "inspect", image], capture_output=True, text=True, check=False)
        try:
            sizes.append(results.ImageSize(image, json.loads(inspected.stdout)[0]["Size"] / 2**20, None))
        except (ValueError, LookupError) as error:
            sizes.append(results.ImageSize(image, None, f"{Path(tool).name} does not report its size: {error!r}"))
    return sizes


def main() -> None:
    """Measure, write startup.json and startup.png, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    add_pair(parser)
    parser.add_argument("--repeats", type=int, help="starts of each system [3; quick: 1]")
    parser.add_argument("--workers", type=int, default=1, help="worker processes, one torch thread each [1]")
    parser.add_argument("--rest", type=float, default=REST_SECONDS, help="seconds before memory is read [3]")
    options = parse(parser)
    options.repeats = options.repeats or (1 if options.quick else 3)
    console = make_console()
    archive = archive_of(options.archives, options.models[0])
    head = head_of("startup", options)
    measured = _Measured(head)
    complete = False
    try:
        for number in range(1, options.repeats + 1):
            for name in participants_of(options.peers):
                if name in measured.participants and measured.participants[name].error:
                    continue
                try:
                    prepare(name)
                    setup = Setup(Shape(options.workers, 1), pair=asked_pair(options))
                    start, measured.participants[name] = measure_start(name, archive, setup, options.rest)
                except (PeerUnavailable, DidNotStart, OSError) as error:
                    console.print(f"[red]{name} is not measured:[/] {escape(str(error))}")
                    measured.participants[name] = results.Participant(name, archive.stem, error=str(error))
                    continue
                measured.starts.append(start)
                console.print(
                    f"start {number}: {name} {start.seconds_to_first_answer:.1f} s, "
                    f"{start.idle_pss_mib:.0f} MiB in {start.processes} processes"
                )
        complete = True
    except KeyboardInterrupt:
        console.print("[yellow]stopped early:[/] the results so far are kept")
    result = measured.result(image_sizes(), complete=complete)
    results.write(options.out / "startup.json", result)
    plot_startup(result, options.out / "startup.png", console)
    table = Table("system", "seconds to first answer", "idle MiB (PSS)")
    for system, seconds in result.median_seconds.items():
        table.add_row(system, f"{seconds:.1f}", f"{result.idle_pss_mib[system]:.0f}")
    console.print(table)
    for image in result.images:
        console.print(f"image {image.image}: {image.skipped or f'{image.mib:.0f} MiB'}")
    if options.json:
        print((options.out / "startup.json").read_text(), end="")


if __name__ == "__main__":
    main()
