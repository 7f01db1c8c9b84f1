"""The results of `benchmarks.serving` as text. Measures nothing.

In: the content of `serving.json`. Out: a table for the terminal, a section of docs/performance.md, and the tables of
the README and of docs/capacity.md.
"""

import math
import statistics
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.pairs import REFERENCE
from benchmarks.report import NOTHING, SYSTEMS, Result, Rows, accuracy, computed_by, made_by, spread, table
from benchmarks.serving_results import ServingResult
from benchmarks.systems import BEFORE, OURS

HEADLINE_CLIENTS = 32
_COLUMNS = {**SYSTEMS, BEFORE: "ours before"}
_PEAK_PER_SECOND = 1e9 / 86_400 * 2.5  # a billion pictures a day; the busiest minute has 2.5 times the mean
_PLANNED, _ZONES = 0.7, 3


def show(result: ServingResult, console: Console) -> None:
    """Print a table of the ratios: medians over the rounds."""
    table = Table(title="throughput of our server / others; TorchScript: float32, in process")
    peers = sorted({peer for by_peer in result.ratio_to_peer.values() for peer in by_peer})
    table.add_column("case", no_wrap=True)
    for column in ("/ TorchScript", "/ limit", *(f"/ {_COLUMNS[peer]}" for peer in peers)):
        table.add_column(column, justify="right")
    for case, of_limit in result.ratio_to_limit.items():
        to_peer = result.ratio_to_peer.get(case, {})
        to_torchscript = result.ratio_to_torchscript.get(case)
        cells = [f"{to_peer[peer].median:.2f}" if peer in to_peer else "-" for peer in peers]
        first = "-" if to_torchscript is None else f"{to_torchscript.median:.2f}"
        table.add_row(case, first, f"{of_limit.median:.2f}", *cells)
    console.print(table)
    for pair in result.limits:
        console.print(f"{pair.model} in process, {pair.engine} {pair.dtype}: {pair.per_second:.0f}/s")
    for model, by_system in result.added_ms.items():
        added = ", ".join(f"{_COLUMNS[system]} {ms.median:.1f}" for system, ms in by_system.items())
        console.print(f"{model}, latency added with one client, ms: {added}")
    for one in result.participants:
        if one.error:
            console.print(f"[red]{one.name} ({one.model}) was not measured:[/] {one.error.splitlines()[0]}")


def current(result: Result) -> Result:
    """A result with the fields of schema 2.

    Files of schema 1 were measured when TorchScript was the only engine. Without AMX it ran in float32, so their limit
    is TorchScript in float32. Remove this when `serving.json` was measured again.
    """
    if result["head"]["schema_version"] >= 2:
        return result
    found = {**result, "limits": [], "ratio_to_torchscript": {}, "peer_ratio_to_torchscript": {}}
    found["limit_to_torchscript"] = {}
    pair = {"engine": "", "dtype": ""}
    if "amx_bf16" not in result["head"]["machine"]["cpu_flags"]:
        pair = {"engine": REFERENCE.engine, "dtype": REFERENCE.dtype}
        same = {"median": 1.0, "low": 1.0, "high": 1.0, "rounds": 1}
        found["ratio_to_torchscript"] = result["ratio_to_limit"]
        found["peer_ratio_to_torchscript"] = result["peer_ratio_to_limit"]
        found["limit_to_torchscript"] = dict.fromkeys(result["ratio_to_limit"], same)
    found["limit_turns"] = [{**turn, **pair} for turn in result["limit_turns"]]
    found["participants"] = [{**one, **pair} for one in result["participants"]]
    return found


def systems_of(result: Result) -> list[str]:
    """The systems that have turns, in the order of `SYSTEMS`."""
    return [name for name in SYSTEMS if any(turn["system"] == name for turn in result["turns"])]


def headline(result: Result, *, bold: bool = False) -> str:
    """Throughput relative to TorchScript in float32 in process, at 32 clients, with the accuracy of ours beside it."""
    systems = systems_of(result)
    cores = result["head"]["machine"]["cores"]
    clients = _headline_clients(result)

    def rows() -> Rows:
        for model in dict.fromkeys(turn["model"] for turn in result["turns"] if turn["clients"] == clients):
            case = f"{model}/{clients}"
            gain = result["limit_to_torchscript"].get(case)
            row = [f"`{model}`", _per_core(result, model, clients, cores), *_ran(result, model)]
            row.append(NOTHING if gain is None else f"{gain['median']:.2f}")
            for system in systems:
                found = _to_torchscript(result, system, case)
                text = NOTHING if found is None else f"{found['median']:.2f}"
                row.append(f"**{text}**" if bold and system == OURS else text)
            yield row

    head = ["model", "TorchScript in process, pictures/s per core", "engine of ours", "beside TorchScript"]
    return table([*head, "best in process", *(SYSTEMS[name] for name in systems)], rows())


def ahead(result: Result) -> str:
    """One sentence: which systems had more throughput than ours at 32 clients, and by how much."""
    clients, said = _headline_clients(result), []
    for case, by_peer in result["ratio_to_peer"].items():
        model, _, count = case.rpartition("/")
        if int(count) != clients:
            continue
        faster = [
            f"{SYSTEMS[peer]} {1 / ratio['median']:.2f} times"
            for peer, ratio in by_peer.items()
            if peer in SYSTEMS and 0 < ratio["median"] < 0.995
        ]
        said += [f"`{model}`: {', '.join(faster)}"] if faster else []
    told = "; ".join(said) or "none"
    return f"More pictures per second than ours at {clients} clients (median of the rounds): {told}."


def serving(result: Result) -> str:
    """Throughput relative to TorchScript, share of the limit, latency, CPU time, memory, and added latency."""
    result = current(result)
    systems = systems_of(result)
    columns = [SYSTEMS[name] for name in systems]
    cases = sorted({(turn["model"], turn["clients"]) for turn in result["turns"]})
    most = max(clients for _, clients in cases)

    def share(system: str, case: str) -> str:
        own = result["ratio_to_limit"] if system == OURS else {}
        return spread(own.get(case) or result["peer_ratio_to_limit"].get(case, {}).get(system))

    def medians(figure: str, digits: int) -> Rows:
        for model in (model for model, clients in cases if clients == most):
            row = [f"`{model}`"]
            for system in systems:
                key = (system, model, most)
                turns = [turn for turn in result["turns"] if (turn["system"], turn["model"], turn["clients"]) == key]
                values = [turn[figure] for turn in turns if turn[figure] is not None and turn["answered"]]
                row.append(f"{statistics.median(values):.{digits}f}" if values else NOTHING)
            yield row

    to_torchscript = (
        [
            f"`{model}`",
            str(clients),
            spread(result["limit_to_torchscript"].get(f"{model}/{clients}")),
            *(spread(_to_torchscript(result, system, f"{model}/{clients}")) for system in systems),
        ]
        for model, clients in cases
    )
    shares = ([f"`{m}`", str(n), *(share(system, f"{m}/{n}") for system in systems)] for m, n in cases)
    added = (
        [f"`{model}`", *(spread(by_system.get(system)) for system in systems)]
        for model, by_system in result["added_ms"].items()
    )
    at_most = f"at {most} clients, median of the rounds"
    return "\n\n".join(
        [
            "## Throughput",
            made_by(result["head"]),
            computed_by(result),
            "Pictures per second and core, relative to TorchScript in float32 in plain processes on the same cores, "
            f"without a server ({_headline_clients(result)} clients, median of the rounds):",
            headline(result),
            "*Best in process* is the in-process limit: the fastest network engine, dtype, division of the cores and "
            "batch size. *Beside TorchScript*: the share of answers that stay the same in this dtype, as the card of "
            "the model says, and the difference of the raw outputs on probe pictures, in standard deviations.",
            ahead(result),
            *_pairs(result),
            "The same for all numbers of clients, with the lowest and the highest round in brackets:",
            table(["model", "clients", "best in process", *columns], to_torchscript),
            "### Served throughput / in-process limit",
            "![throughput relative to TorchScript in process, by clients](serving.png)",
            table(["model", "clients", *columns], shares),
            "Median over the rounds, with the lowest and the highest in brackets. Each turn is divided by the limit "
            "measured just before and after it. For one client the limit is one plain process with one picture at a "
            "time.",
            f"CPU time of all processes of a server per picture, ms, {at_most}:",
            table(["model", *columns], medians("server_cpu_ms_per_picture", 1)),
            f"p50 of a call, ms, {at_most}:",
            table(["model", *columns], medians("p50_ms", 0)),
            f"p99 of a call, ms, {at_most}:",
            table(["model", *columns], medians("p99_ms", 0)),
            f"Memory of a server, MiB (PSS), {at_most}:",
            table(["model", *columns], medians("pss_mib", 0)),
            "Mean latency at one client, less the time of a picture in one plain process just before and after, ms:",
            table(["model", *columns], added),
        ]
    )


def capacity(result: Result) -> str:
    """The table of docs/capacity.md: what one pod answered, and the cores for a billion pictures a day."""
    result = current(result)
    machine, clients = result["head"]["machine"], _headline_clients(result)
    cores, lost = machine["cores"], _ZONES / (_ZONES - 1)
    rates = {
        model: statistics.median(turn["per_second"] for turn in mine)
        for model in dict.fromkeys(turn["model"] for turn in result["turns"])
        if (mine := [turn for turn in result["turns"] if (turn["system"], turn["model"]) == (OURS, model)])
        and (mine := [turn for turn in mine if turn["clients"] == clients])
    }

    def rows() -> Rows:
        for model, rate in rates.items():
            needed = _PEAK_PER_SECOND / _PLANNED / (rate / cores)
            yield [f"`{model}`", f"{rate:.0f}", f"{rate / cores:.0f}", f"{needed:,.0f}", f"{needed * lost:,.0f}"]

    model, rate = next(iter(rates.items()))
    pods = math.ceil(_PEAK_PER_SECOND / (rate * _PLANNED))
    head = ["model", f"`R`, pictures per second on {cores} cores", "`r`", "cores at the peak"]
    return "\n\n".join(
        [
            f"{cores} cores ({machine['cpu_model']}), {clients} clients, {machine['started_utc'][:10]}, revision "
            f"{machine['git_revision'][:12]}. {computed_by(result)}",
            table([*head, "with one of three zones lost"], rows()),
            f"For example, a billion pictures of `{model}` need `{_PEAK_PER_SECOND:,.0f} / ({rate:.1f} x {_PLANNED})` "
            f"= {pods:,} pods of {cores} cores, or {math.ceil(pods * lost):,} pods with one zone lost.",
        ]
    )


def _pairs(result: Result) -> list[str]:
    """The candidates for the limit, by model. Nothing for a file without them."""
    if not result["limits"]:
        return []
    reference = {
        one["model"]: one["per_second"]
        for one in result["limits"]
        if (one["engine"], one["dtype"]) == (REFERENCE.engine, REFERENCE.dtype)
    }

    def rows() -> Rows:
        for one in result["limits"]:
            base = reference.get(one["model"])
            yield [
                f"`{one['model']}`",
                f"{one['engine']} {one['dtype']}",
                f"{one['per_second']:.0f}",
                NOTHING if base is None else f"{one['per_second'] / base:.2f}",
                f"{one['shape']}, {one['batch']}",
                accuracy(one["difference"], one["agreement"]),
                "yes" if one["admitted"] else "no",
            ]

    head = ["model", "engine and dtype", "pictures/s", "/ TorchScript float32", "processes x threads, batch"]
    return [
        "Every engine and dtype in plain processes, each with its best set-up, in the search for the limit. The limit "
        "is the fastest that a server may run; `dtype=auto` leaves out a dtype that changes too many answers of a "
        "model.",
        table([*head, "beside TorchScript float32", "a server may run it"], rows()),
    ]


def _headline_clients(result: Result) -> int:
    clients = {turn["clients"] for turn in result["turns"]}
    return HEADLINE_CLIENTS if HEADLINE_CLIENTS in clients else int(max(clients))


def _to_torchscript(result: Result, system: str, case: str) -> Any:
    if system == OURS:
        return result["ratio_to_torchscript"].get(case)
    return result["peer_ratio_to_torchscript"].get(case, {}).get(system)


def _per_core(result: Result, model: str, clients: int, cores: int) -> str:
    """Pictures per second and core of TorchScript in float32 in process."""
    turns = [
        turn["per_second"]
        for turn in result["limit_turns"]
        if (turn["model"], turn["clients"]) == (model, clients)
        and (turn["engine"], turn["dtype"]) == (REFERENCE.engine, REFERENCE.dtype)
    ]
    return f"{statistics.median(turns) / cores:.0f}" if turns else NOTHING


def _ran(result: Result, model: str) -> tuple[str, str]:
    """What ran the networks of our server, and how close that is to the reference."""
    mine = next((one for one in result["participants"] if (one["name"], one["model"]) == (OURS, model)), None)
    if mine is None or not mine["engine"]:
        return NOTHING, NOTHING
    pair = (mine["engine"], mine["dtype"])
    if pair == (REFERENCE.engine, REFERENCE.dtype):
        return " ".join(pair), accuracy(0.0, None)
    found = next(
        (one for one in result["limits"] if (one["model"], one["engine"], one["dtype"]) == (model, *pair)), None
    )
    return " ".join(pair), NOTHING if found is None else accuracy(found["difference"], found["agreement"])
