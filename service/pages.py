"""Several metrics pages as one: those of the processes of one service, in Prometheus' text format 0.0.4.

In: pages by the name of their process, as `metrics` renders them. Out: one page in which HELP and TYPE stand once per
family and every sample has the label `gateway_process`. Never adds samples up: sums and maxima are the reader's choice.
"""

import re
from collections.abc import Mapping

LABEL = "gateway_process"

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (.*)")


def merged(pages: Mapping[str, bytes]) -> bytes:
    """One page. Families stand in the order in which they first appear, samples in the order of `pages`."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for process, page in pages.items():
        family = ""
        # Not splitlines(): label values may hold characters that it takes for ends of lines.
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
