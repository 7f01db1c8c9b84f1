"""Merges the metrics pages of several processes of one server, in Prometheus' text format 0.0.4.

In: pages by the name of their process, as `Metrics.page` renders them. Out: one page with one HELP and TYPE per family,
and the label `gateway_process` on each sample. Never adds samples up; queries do.
"""

import re
from collections.abc import Mapping

LABEL = "gateway_process"

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (.*)")


def merged(pages: Mapping[str, bytes]) -> bytes:
    """Return one page. Families are in the order of their first appearance, samples in the order of `pages`."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for process, page in pages.items():
        family = ""
        # Not splitlines(): label values may contain characters that it takes for line ends.
        for line in page.decode().split("\n"):
            if line.startswith("# HELP "):
                family = line.split(" ", 3)[2]
                heads.setdefault(family, [line])
                samples.setdefault(family, [])
            elif line.startswith("# TYPE ") and len(heads[family]) == 1:
                heads[family].append(line)
            elif line and not line.startswith("#"):
                samples[family].append(_labelled(line, process))
    lines = (line for family, head in heads.items() for line in head + samples[family])
    return "".join(f"{line}\n" for line in lines).encode()


def _labelled(sample: str, process: str) -> str:
    found = _SAMPLE.fullmatch(sample)
    if found is None:
        raise ValueError(f"this is a bug: not a sample of a metrics page: {sample!r}")
    name, labels, value = found.groups()
    return f'{name}{{{LABEL}="{process}"{"," if labels else ""}{labels or ""}}} {value}'
