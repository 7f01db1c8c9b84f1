"""The measured results as Markdown: a section for each file, without that of `serving` (`benchmarks.serving_report`).

In: the content of the files in `benchmarks/measured`. Out: text, which `benchmarks.pages` writes. Measures nothing.
"""

import ast
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

MEASURED = Path(__file__).parent / "measured"
SYSTEMS = {
    "mobilevision": "ours",
    "mosec": "mosec",
    "mosec_openvino": "mosec, own OpenVINO",
    "torchserve_alone": "TorchServe tuned",
    "litserve": "LitServe",
    "ray_serve": "Ray Serve",
    "bentoml": "BentoML",
    "torchserve_documented": "TorchServe as documented",
}
NOTHING = "–"

Result = dict[str, Any]  # a result file, see `results`
Rows = Iterable[Sequence[str]]


def table(head: Sequence[str], rows: Rows) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(found: Result | None) -> str:
    """`0.91 (0.88 to 0.94)`."""
    return NOTHING if found is None else f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def made_by(head: Result) -> str:
    """The command, the machine and the date."""
    words = [f"python -m benchmarks.{head['benchmark']}"]
    for name, value in head["options"].items():
        if value not in {"False", "None", "auto"} and name not in {"json", "archives"}:
            given = " ".join(map(str, ast.literal_eval(value))) if value.startswith("[") else value
            words.append(f"--{name.replace('_', '-')}" + ("" if value == "True" else f" {given}"))
    stopped = "" if head["complete"] else "; stopped early, what was measured until then is kept"
    return f"```\n{' '.join(words)}\n```\n\n{made_on(head)}{stopped}."


def made_on(head: Result) -> str:
    """The machine and the date."""
    machine = head["machine"]
    return (
        f"{machine['cores']} cores ({machine['cpu_model']}), {machine['memory_gib']:.0f} GiB, "
        f"torch {machine['torch']}, {machine['started_utc'][:10]}, revision {machine['git_revision'][:12]}"
    )


def accuracy(difference: float | None, agreement: float | None) -> str:
    """How close a pair is to TorchScript in float32: the share of equal answers, and the difference of raw outputs."""
    if difference == 0.0:
        return "the reference"
    said = [] if agreement is None else [f"{agreement:.1%} same answers"]
    said += [] if difference is None else [f"raw outputs within {difference:.0e}"]
    return ", ".join(said) or "not told"


def computed_by(result: Result) -> str:
    """One sentence: the network engine and the dtype of each system, as far as the file has them."""
    if result["head"]["schema_version"] < 2:
        if "amx_bf16" in result["head"]["machine"]["cpu_flags"]:
            return "The file does not name the network engine."
        return "All systems ran the networks in TorchScript, in float32: workers had no other engine at this revision."
    if "engine" in result:
        return f"The networks ran in {result['engine']} {result['dtype']}."
    known = [one for one in result.get("participants", ()) if one["engine"]]
    models = {one["model"] for one in known}
    by_pair: dict[str, dict[str, list[str]]] = {}
    for one in known:
        systems = by_pair.setdefault(f"{one['engine']} {one['dtype']}", {})
        systems.setdefault(SYSTEMS.get(one["name"], one["name"]), []).append(f"`{one['model']}`")
    parts = []
    for pair, systems in by_pair.items():
        names = [
            name if len(of) == len(models) else f"{name} ({', '.join(dict.fromkeys(of))})"
            for name, of in systems.items()
        ]
        parts.append(f"{pair} ({', '.join(names)})")
    return f"The networks ran in {'; '.join(parts)}." if parts else "No system says what ran its networks."


def overload(result: Result) -> str:
    """Answers in time, by load."""

    def rows() -> Rows:
        for system, by_load in result["goodput_over_capacity"].items():
            for load, goodput in by_load.items():
                points = [p for p in result["points"] if (p["system"], f"{p['load']:g}") == (system, load)]
                sent = sum(p["sent"] for p in points)
                tails = [p["p99_ms"] for p in points if p["p99_ms"] is not None]
                yield [
                    SYSTEMS.get(system, system),
                    load,
                    spread(goodput),
                    str(sent),
                    *(str(sum(p[outcome] for p in points)) for outcome in ("answered", "refused", "missed", "failed")),
                    f"{statistics.median(tails):.0f}" if tails else NOTHING,
                ]

    head = ["system", "asked / capacity", "answered in time / capacity", "sent", "answered in time", "refused"]
    return "\n\n".join(
        [
            "## Overload",
            made_by(result["head"]),
            computed_by(result),
            "![answered in time, by load](overload.png)",
            table([*head, "missed", "failed", "p99 of answered, ms"], rows()),
            f"Deadline {result['deadline_ms']:.0f} ms. Every request is counted once.",
        ]
    )


def soak(result: Result) -> str:
    """Memory by process, and counts of requests."""
    rows = (
        [
            one["name"],
            f"{one['first_mib']:.0f}",
            f"{one['last_mib']:.0f}",
            f"{one['slope_mib_per_hour']:z.0f}",
            "yes" if one["within_bound"] else "**no**",
        ]
        for one in result["processes"]
    )
    bounds = {one["bound_mib_per_hour"] for one in result["processes"]}
    return "\n\n".join(
        [
            "## Soak",
            made_by(result["head"]),
            computed_by(result),
            f"{result['minutes']:.0f} minutes at {result['offered_per_second'] / result['capacity_per_second']:.2f} of "
            f"the capacity: {result['sent']:,} sent, {result['answered']:,} answered in time, {result['refused']:,} "
            f"refused, {result['missed']:,} missed, {result['failed']:,} failed. Shared-memory slots in use at the "
            f"end: {result['slots_in_use_at_end']:.0f}. Processes that ended: {result['processes_that_ended']}.",
            table(["process", "first MiB", "last MiB", "slope, MiB per hour", "within the bound"], rows),
            f"The bound is {', '.join(f'{bound:g}' for bound in sorted(bounds))} MiB per hour.",
        ]
    )


def startup(result: Result) -> str:
    """Seconds to the first answer, idle memory, sizes of images."""
    rows = (
        [SYSTEMS.get(system, system), f"{seconds:.1f}", f"{result['idle_pss_mib'][system]:.0f}"]
        for system, seconds in sorted(result["median_seconds"].items(), key=lambda item: item[1])
    )
    images = [
        f"{image['image'].rsplit('/', 1)[-1]} {image['mib']:.0f} MiB" for image in result["images"] if image["mib"]
    ]
    return "\n\n".join(
        [
            "## Start",
            made_by(result["head"]),
            computed_by(result),
            table(["system", "seconds to the first correct answer", "idle MiB (PSS)"], rows),
            *([f"Images: {', '.join(images)}."] if images else []),
        ]
    )


def scaling(result: Result) -> str:
    """Throughput and cost by dimension, as multiples of the limit."""
    parts = [
        "## What cost grows with",
        made_by(result["head"]),
        computed_by(result),
        "![throughput and CPU time by batch, picture, models, gateways](scaling.png)",
        f"Model `{result['model']}`. Throughput and CPU time per picture are multiples of the in-process limit: plain "
        "processes that decode and run a picture of 256 px in batches of 8.",
    ]
    for dimension in dict.fromkeys(point["dimension"] for point in result["points"]):
        points = [point for point in result["points"] if point["dimension"] == dimension]
        rows = (
            [
                f"{point['value']:g}",
                f"{point['share_of_limit']:.2f}",
                f"{point['cost_over_limit']:.2f}",
                NOTHING if point["pss_mib"] is None else f"{point['pss_mib']:.0f}",
            ]
            for point in points
        )
        parts.append(table([dimension, "throughput", "CPU time per picture", "MiB (PSS)"], rows))
    return "\n\n".join(parts)


def gpu(result: Result) -> str:
    """The modules on a GPU, with and without CUDA graphs. One table for each model."""
    points = {(one["model"], one["dtype"], one["batch"], one["graphs"]): one for one in result["points"]}
    agreements = {(one["model"], one["dtype"]): one for one in result["agreements"]}

    def rows(model: str) -> Rows:
        for dtype, batch in dict.fromkeys((one[1], one[2]) for one in points if one[0] == model):
            graphed, eager = (points.get((model, dtype, batch, graphs)) for graphs in (True, False))
            speedup = result["graph_speedup"].get(f"{model}/{dtype}/{batch}")
            busy_ms = (graphed or eager or {}).get("device_ms")
            same = agreements.get((model, f"{dtype}+graphs")) or agreements.get((model, dtype))
            yield [
                dtype,
                str(batch),
                *(NOTHING if one is None else f"{one['per_second']:,.0f}" for one in (graphed, eager)),
                NOTHING if speedup is None else f"{speedup:.2f}",
                NOTHING if busy_ms is None else f"{busy_ms:.2f}",
                NOTHING if same is None else f"{same['same']:.4f}",
                NOTHING if same is None else f"{same['largest_score_difference']:.5f}",
            ]

    head = ["dtype", "batch", "pictures/s with graphs", "without", "with / without", "device ms", "same as float32"]
    parts = [
        "## On a GPU",
        f"{result['device']}, {made_on(result['head'])}. `python -m benchmarks.gpu` ran the modules in one process, "
        "from pixels in memory to answers in memory, without decoding and without a server.",
        "*With* and *without* refer to CUDA graphs. *Device ms* is the time the device works on a batch, with graphs "
        "where that was measured. *Same as float32* is the share of pictures with the same best label or box, in "
        "segmentation the share of equal pixels; in the rows of float32 itself, runs without graphs are compared with "
        "runs with graphs. Beside it is the largest difference of a score; a class map has no scores, so it is 0 "
        "there.",
    ]
    for model in dict.fromkeys(one[0] for one in points):
        parts += [f"`{model}`:", table([*head, "largest score difference"], rows(model))]
    limit = [
        f"`{one['model']}` {one['per_second']:,.0f} pictures/s in {one['shape']}, batches of {one['batch']}"
        for one in result["served"].get("limit", {}).get("limit_turns", ())
    ]
    if limit:
        parts.append(
            f"The in-process limit (processes x threads), with decoding, without a server: {'; '.join(limit)}."
        )
    if result["errors"]:
        parts += [
            "What is missing, and how the file was merged:",
            "\n".join(f"* {error}" for error in result["errors"]),
        ]
    return "\n\n".join(parts)


SECTIONS: dict[str, Callable[[Result], str]] = {
    "overload": overload,
    "startup": startup,
    "scaling": scaling,
    "soak": soak,
    "gpu": gpu,
}
