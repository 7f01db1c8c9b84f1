"""Draws a dashboard from the data of a Prometheus, without Grafana, for documents and reviews. Needs matplotlib.

In: a generated dashboard and the address of a Prometheus. Out: a PNG with every panel at its position. It resembles the
dashboard in Grafana but is not equal to it. The picture contains a note about this.
"""

import argparse
import itertools
import json
import math
import re
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import dates, pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

HERE = Path(__file__).parent
STEPS = 120
COLUMN_INCHES, LINE_INCHES = 0.75, 0.36  # a cell of Grafana's grid, which has 24 columns and lines of 30 px
NOTE = "Drawn by matplotlib from Prometheus data, not by Grafana."


@dataclass(frozen=True, slots=True)
class Series:
    """One series: values at Unix times in seconds."""

    labels: dict[str, str]
    at: list[float]
    values: list[float]


@dataclass(frozen=True, slots=True)
class Source:
    """A Prometheus, the shown interval (`seconds` before the Unix time `end_at`), and the values of the variables."""

    address: str
    end_at: float
    seconds: float
    variables: dict[str, str]

    def read(self, expression: str) -> list[Series]:
        """Query the series of an expression over the interval."""
        for name, value in self.variables.items():
            expression = expression.replace(f"${name}", value)
        step = max(1.0, self.seconds / STEPS)
        query = {"query": expression, "start": self.end_at - self.seconds, "end": self.end_at, "step": step}
        url = f"{self.address}/api/v1/query_range?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url) as answer:  # noqa: S310 - the operator's own address
            result = json.load(answer)["data"]["result"]
        return [
            Series(found["metric"], [at for at, _ in found["values"]], [float(value) for _, value in found["values"]])
            for found in result
        ]


def text(value: float, unit: str) -> str:
    """A value with its unit, as text."""
    if math.isnan(value):
        return "no data"
    if unit == "percentunit":
        return f"{value:.2%}" if value < 0.1 else f"{value:.0%}"
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"
    if unit == "bytes":
        return f"{value / 2**20:.0f} MiB"
    return f"{value:.3g}" + {"reqps": "/s"}.get(unit, "")


def draw(dashboard: dict[str, Any], source: Source) -> Figure:
    """Draw the whole dashboard."""
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"]) + 2
    figure = pyplot.figure(figsize=(24 * COLUMN_INCHES, height * LINE_INCHES), dpi=80)
    figure.suptitle(f"{dashboard['title']}\n{NOTE}", fontsize=10)
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        left, top = at["x"] / 24, 1 - (at["y"] + 2) / height
        if panel["type"] == "row":
            figure.text(0.01, top - 0.7 / height, panel["title"], fontsize=12, weight="bold")
            continue
        room = (left + 0.035, top - (at["h"] - 1.3) / height, at["w"] / 24 - 0.05, (at["h"] - 2.6) / height)
        axes = figure.add_axes(room)
        axes.set_title(panel["title"], fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
        _DRAW[panel["type"]](axes, panel, source)
    return figure


def _legend(template: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), template).strip() or "value"


def _lines(axes: Axes, panel: dict[str, Any], source: Source) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    stacked = defaults["custom"].get("stacking", {}).get("mode") == "normal"
    found = [
        (_legend(target["legendFormat"], series.labels), series)
        for target in panel["targets"]
        for series in source.read(target["expr"])
    ]
    times = sorted({at for _, series in found for at in series.at})
    below = [0.0] * len(times)
    for name, series in found:
        values = dict(zip(series.at, series.values, strict=True))
        line = [values.get(at, math.nan) for at in times]
        if stacked:
            line = [base + (0.0 if math.isnan(value) else value) for base, value in zip(below, line, strict=True)]
            axes.fill_between(_days(times), below, line, alpha=0.4, label=name)
            below = line
        else:
            axes.plot(_days(times), line, linewidth=1, label=name)
    if found:
        axes.legend(fontsize=6, ncols=3, loc="upper left", framealpha=0.5)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M:%S"))
        axes.xaxis.set_major_locator(dates.AutoDateLocator(minticks=2, maxticks=4))
    else:
        _nothing(axes)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value, defaults["unit"])))


def _number(axes: Axes, panel: dict[str, Any], source: Source) -> None:
    axes.axis("off")
    unit = panel["fieldConfig"]["defaults"]["unit"]
    values = [series.values[-1] for series in source.read(panel["targets"][0]["expr"])]
    axes.text(0.5, 0.4, text(values[0] if values else math.nan, unit), fontsize=18, ha="center", va="center")


def _buckets(axes: Axes, panel: dict[str, Any], source: Source) -> None:
    series = sorted(source.read(panel["targets"][0]["expr"]), key=lambda one: float(one.labels["le"]))
    if not series:
        _nothing(axes)
        return
    times = series[0].at
    cumulative = [[dict(zip(one.at, one.values, strict=True)).get(at, 0.0) for at in times] for one in series]
    inside = [cumulative[0]] + [
        [high - low for low, high in zip(*pair, strict=True)] for pair in itertools.pairwise(cumulative)
    ]
    axes.pcolormesh(_days(times), range(len(series)), inside, cmap="Oranges", shading="nearest")
    unit = panel["options"]["yAxis"]["unit"]
    ticks = range(0, len(series), 3)
    axes.set_yticks(list(ticks), [text(float(series[tick].labels["le"]), unit) for tick in ticks])
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M:%S"))
    axes.xaxis.set_major_locator(dates.AutoDateLocator(minticks=2, maxticks=4))


def _listing(axes: Axes, panel: dict[str, Any], source: Source) -> None:
    axes.axis("off")
    columns = [name for name in panel["transformations"][0]["options"]["indexByName"] if name != "Value"]
    cells = [[series.labels.get(name, "") for name in columns] for series in source.read(panel["targets"][0]["expr"])]
    if cells:
        axes.table(cells, colLabels=columns, loc="upper center", cellLoc="left").set_fontsize(7)
    else:
        _nothing(axes)


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no data", ha="center", va="center", color="gray", transform=axes.transAxes)


def _days(times: list[float]) -> list[float]:
    """Unix times in seconds as matplotlib's dates (days)."""
    return [at / 86400 for at in times]


_DRAW = {"timeseries": _lines, "stat": _number, "heatmap": _buckets, "table": _listing}


def main() -> None:
    """Draw one dashboard."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dashboard", choices=sorted(file.stem for file in (HERE / "dashboards").glob("*.json")))
    parser.add_argument("--prometheus", default="http://localhost:9090")
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the shown interval [60]")
    parser.add_argument("--rate-interval", default="1m", help="four times the scrape interval [1m]")
    parser.add_argument("--price-per-hour", default="0.10")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    variables = {
        **dict.fromkeys(("cluster", "namespace", "pod", "model"), ".*"),
        "price_per_hour": given.price_per_hour,
        "__rate_interval": given.rate_interval,
    }
    source = Source(given.prometheus, time.time(), given.minutes * 60, variables)
    dashboard = json.loads((HERE / "dashboards" / f"{given.dashboard}.json").read_text())
    draw(dashboard, source).savefig(given.out)


if __name__ == "__main__":
    main()
