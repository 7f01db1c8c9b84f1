"""Every command and query in docs/runbook.md fits the manifests and the metrics."""

import re

import pytest
from manifests import ROOT, combined, overlay
from monitoring import FOREIGN, names, own_series, recorded

from service.core.settings.listeners import DEFAULT_HTTP_PORT

TEXT = (ROOT / "docs" / "runbook.md").read_text()
CODE = [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", TEXT)]
BLOCKS = re.findall(r"```\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = sorted({code for code in CODE if code.startswith("kubectl ")})
QUERIES = sorted({code for code in [*CODE, *"\n".join(BLOCKS).splitlines()] if re.search(r"\w\(.*mobilevision_", code)})
BUILT = overlay("cpu-small")
CONTAINERS = {c["name"] for c in (*BUILT.pod["containers"], *BUILT.pod["initContainers"]) if c["name"] != "models"}


def test_the_page_has_commands_and_queries() -> None:
    assert len(COMMANDS) > 15
    assert len(QUERIES) > 8


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_what_the_manifests_have(command: str) -> None:
    verb = command.split()[1]
    words = command.partition(" | ")[0].partition(" -- ")[0].split()
    if verb in ("logs", "exec"):
        assert words[words.index("-c") + 1] in CONTAINERS, "without -c it is the gateway, or an error under KServe"
    for deployment in re.findall(r"deployment/(\S+)", command):
        assert deployment == BUILT.one("Deployment")["metadata"]["name"]
    for key, value in re.findall(r"-l (\S+)=(\S+)", command):
        assert BUILT.pod_labels[key] == value
    for namespace in re.findall(r"--namespace=(\S+)", command):
        assert namespace == BUILT.one("Deployment")["metadata"]["namespace"]
    for secret in re.findall(r"get secret (\S+)", command):
        volumes = combined("tls").pod["volumes"]
        assert secret in {volume["secret"]["secretName"] for volume in volumes if "secret" in volume}
    if verb == "port-forward":
        port = DEFAULT_HTTP_PORT
        assert words[-1] == f"{port}:{port}"
        assert port in {one["containerPort"] for one in BUILT.gateway["ports"]}


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_asks_for_metrics_that_exist(query: str) -> None:
    assert {name for name in names(query) if not FOREIGN.fullmatch(name)} <= own_series() | recorded()


def test_the_page_says_what_the_containers_are_called_under_kserve() -> None:
    kserve = overlay("kserve")
    assert f"`{kserve.gateway['name']}`" in TEXT
    assert f"`{kserve.one('InferenceService')['metadata']['name']}-predictor`" in TEXT
