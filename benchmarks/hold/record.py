"""`hold.json`: what was measured of each section, when, and on which machine."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.hold.section import Row, Section
from benchmarks.machine import Machine

FILE_NAME = "hold.json"


@dataclass(frozen=True)
class Record:
    """A measured section. `command` repeats it. `seconds` is how long it took. `error`: it could not be measured."""

    section: Section
    machine: Machine
    command: str
    seconds: float
    error: str = ""

    @property
    def held(self) -> bool:
        """Whether the section was measured, and every row held."""
        return not self.error and bool(self.section.rows) and self.section.held


def read(folder: Path) -> dict[str, Record]:
    """The records in a folder by the name of their section; none if there is no file."""
    path = folder / FILE_NAME
    if not path.exists():
        return {}
    return {one["section"]["name"]: _record(one) for one in json.loads(path.read_bytes())["sections"]}


def write(folder: Path, records: dict[str, Record]) -> None:
    """Write the records in their order. A reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"schema_version": 1, "sections": [dataclasses.asdict(one) for one in records.values()]}
    beside = folder / f".{FILE_NAME}"
    beside.write_text(json.dumps(content, indent=1) + "\n")
    beside.replace(folder / FILE_NAME)


def _record(found: dict[str, Any]) -> Record:
    section = dict(found["section"])
    section["columns"] = tuple(section["columns"])
    section["rows"] = tuple(Row(tuple(row["cells"]), row["held"]) for row in section["rows"])
    machine = {**found["machine"], "cpu_flags": tuple(found["machine"]["cpu_flags"])}
    return Record(**{**found, "section": Section(**section), "machine": Machine(**machine)})
