"""The types of panel in our dashboards, and the parts common to all dashboards: data source, variables, links.

Every panel has a unit and a description. Panels about a fault link to the heading of their alert in the runbook. Out:
builders of the Grafana Foundation SDK. This module writes no files.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard, units
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

# While All is selected, these match series without the label too.
SITE = 'cluster=~"$cluster", namespace=~"$namespace"'  # recorded series have no pod
SCRAPED = f'{SITE}, pod=~"$pod"'
MODEL = f'{SCRAPED}, model=~"$model"'
ANSWERED = f'{MODEL}, code="OK", method!~"GetModel|ListModels"'
PICTURES = f'{MODEL}, method!~"GetModel|ListModels"'
RATE = "$__rate_interval"
REPLICA = "cluster, namespace, job, pod, instance"  # a pod, or a server on one machine, with all its processes
POD = "{{pod}} {{instance}}"  # legend of a replica; outside Kubernetes there is no pod

DATA_SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
COLUMNS = 24

_VERSIONS = f"count by (model, version) (mobilevision_model_info{{{MODEL}}}%s)"
_CANDIDATES = f'count by (model, version) (mobilevision_version_share{{{MODEL}, role="candidate"}}%s)'
_REPLICAS = f"count by ({REPLICA}) (mobilevision_inflight_requests{{{SCRAPED}}}%s)"

Panel = timeseries.Panel | stat.Panel | heatmap.Panel | table.Panel


@dataclass(frozen=True, slots=True)
class Query:
    """One expression and the legend of its series. `{{label}}` in the legend is the value of that label."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Event:
    """Marks in all panels over time, where series of an expression appear. `title` is like a legend."""

    name: str
    expr: str
    title: str
    color: str

    def build(self) -> dashboard.AnnotationQuery:
        """Build the annotation."""
        return _Annotation(self)


class _Annotation(dashboard.AnnotationQuery):
    """An annotation from Prometheus. The SDK does not know the fields of that data source."""

    def __init__(self, event: Event) -> None:
        super().__init__(name=event.name, datasource=DATA_SOURCE, icon_color=event.color, expr=event.expr)
        self._title = event.title

    def to_json(self) -> dict[str, object]:
        return super().to_json() | {"titleFormat": self._title, "step": "60s"}


@dataclass(frozen=True, slots=True)
class Row:
    """A titled row of panels."""

    title: str
    panels: Sequence[Panel]


def lines(
    title: str,
    about: str,
    unit: str,
    *queries: Query,
    width: int = 8,
    stacked: bool = False,
    most: float | None = None,
    alert: str | None = None,
) -> timeseries.Panel:
    """A panel with values over time. `alert` is the alert to whose heading in the runbook the panel links."""
    panel = timeseries.Panel().title(title).description(about).unit(unit).span(width).height(8).min(0)
    panel.datasource(DATA_SOURCE).fill_opacity(25 if stacked else 8).line_width(1)
    panel.show_points(options.VisibilityMode.NEVER)
    panel.legend(
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(options.LegendDisplayMode.LIST)
        .placement(options.LegendPlacement.BOTTOM)
        .calcs([])
    )
    panel.tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI).sort(options.SortOrder.DESCENDING))
    if stacked:
        panel.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL).group("A"))
    if most is not None:
        panel.max(most)
    if alert is not None:
        panel.links([_runbook_link(alert)])
    return panel.targets([_target(index, query) for index, query in enumerate(queries)])


def number(
    title: str, about: str, unit: str, query: Query, *, width: int = 4, steps: Sequence[tuple[float | None, str]] = ()
) -> stat.Panel:
    """A panel with the current value. `steps` are thresholds and their colours; the first threshold is None."""
    panel = stat.Panel().title(title).description(about).unit(unit).span(width).height(4).datasource(DATA_SOURCE)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
    panel.graph_mode(options.BigValueGraphMode.AREA).color_mode(options.BigValueColorMode.VALUE)
    thresholds = [dashboard.Threshold(value=value, color=color) for value, color in steps or ((None, "blue"),)]
    panel.thresholds(dashboards.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(thresholds))
    return panel.targets([_target(0, query)])


def buckets(title: str, about: str, unit: str, query: Query, *, width: int = 8) -> heatmap.Panel:
    """A panel with a histogram over time. The query sums buckets by `le`. Exemplars link to traces."""
    panel = heatmap.Panel().title(title).description(about).span(width).height(8).datasource(DATA_SOURCE)
    panel.calculate(False).cell_gap(1)
    panel.color(
        heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64).fill("dark-orange")
    )
    panel.y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(options.AxisPlacement.LEFT))
    panel.exemplars_color("rgba(255,0,255,0.7)").show_color_scale(True)
    return panel.targets([_target(0, query).format(PromQueryFormat.HEATMAP).exemplar(True)])


def listing(title: str, about: str, query: Query, *, columns: Sequence[str], width: int = 24) -> table.Panel:
    """A table with one row per current series and the labels `columns`."""
    panel = (
        table.Panel().title(title).description(about).unit(units.Short).span(width).height(7).datasource(DATA_SOURCE)
    )
    arrange = {
        "includeByName": dict.fromkeys(columns, True),
        "indexByName": {name: index for index, name in enumerate(columns)},
    }
    panel.with_transformation(dashboard.DataTransformerConfig(id_val="organize", options=arrange))
    return panel.targets([_target(0, query).format(PromQueryFormat.TABLE).instant()])


def page(
    *,
    uid: str,
    title: str,
    about: str,
    rows: Sequence[Row],
    runbook: str,
    variables: Sequence[dashboards.TextBoxVariable] = (),
) -> dashboard.Dashboard:
    """A dashboard with the variables `datasource`, `cluster`, `namespace`, `pod`, `model` and `variables`.

    It marks roll-outs and pods that start, and has links to the other dashboards and the runbook.
    """
    built = (
        dashboards.Dashboard(title)
        .uid(uid)
        .description(about)
        .tags(["mobilevision"])
        .editable()
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .link(
            dashboards.DashboardLink("mobilevision")
            .type(dashboard.DashboardLinkType.DASHBOARDS)
            .tags(["mobilevision"])
            .as_dropdown(False)
            .include_vars(True)
            .keep_time(True)
        )
        .link(
            dashboards.DashboardLink("Runbook")
            .type(dashboard.DashboardLinkType.LINK)
            .icon("doc")
            .tooltip("Meaning of each alert, and what to do")
            .url("${runbook}")
            .target_blank(True)
        )
    )
    built.with_variable(dashboards.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    for name, label, query in (
        ("cluster", "Cluster", "label_values(mobilevision_model_info, cluster)"),
        ("namespace", "Namespace", 'label_values(mobilevision_model_info{cluster=~"$cluster"}, namespace)'),
        ("pod", "Pod", f"label_values(mobilevision_model_info{{{SITE}}}, pod)"),
        ("model", "Model", f"label_values(mobilevision_model_info{{{SITE}}}, model)"),
    ):
        everything = dashboard.VariableOption(text=["All"], value=["$__all"], selected=True)
        built.with_variable(
            dashboards.QueryVariable(name)
            .label(label)
            .query(query)
            .datasource(DATA_SOURCE)
            .include_all(True)
            .all_value(".*")
            .multi(True)
            .current(everything)
            .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        )
    for variable in variables:
        built.with_variable(variable)
    built.with_variable(
        text_variable("runbook", "Runbook", "Address of the runbook for these alerts.", runbook).hide(
            dashboard.VariableHide.HIDE_VARIABLE
        )
    )
    for event in EVENTS:
        built.annotation(event)
    ids = itertools.count(1)
    for row in rows:
        built.with_row(dashboards.Row(row.title).id(next(ids)))
        for panel in row.panels:
            built.with_panel(panel.id(next(ids)))
    return built.build()


def text_variable(name: str, label: str, about: str, value: str) -> dashboards.TextBoxVariable:
    """A variable that the viewer can edit."""
    chosen = dashboard.VariableOption(text=value, value=value, selected=True)
    return dashboards.TextBoxVariable(name).label(label).description(about).default_value(value).current(chosen)


def _appears(series: str) -> str:
    """True for two minutes after a series appeared. `series` has %s where an offset may stand."""
    return f"{series % ''} unless {series % ' offset 2m'}"


EVENTS = (
    Event("Versions", _appears(_VERSIONS), "{{model}} {{version}} is stable", "purple"),
    Event("Candidates", _appears(_CANDIDATES), "{{model}} {{version}} is a candidate", "light-purple"),
    Event("Pods", _appears(_REPLICAS), f"started: {POD}", "semi-dark-blue"),
)


def _target(index: int, query: Query) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + index))
    return target.datasource(DATA_SOURCE)


def _runbook_link(alert: str) -> dashboards.DashboardLink:
    return dashboards.DashboardLink(f"Runbook: {alert}").url(f"${{runbook}}#{alert.lower()}").target_blank(True)
