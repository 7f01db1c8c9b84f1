"""Strict schemas of the CRD fields that our manifests use, by kind: `crd_fields.json`.

`python tests/crds.py FOLDER` writes the file from the CRD files of the other projects, which are not part of this
repository. A field that is not in the schema is misspelt or used for the first time. In the second case write the file
again.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml
from manifests import OVERLAYS, combinations, combined, overlay

FILE = Path(__file__).with_name("crd_fields.json")
KEPT = ("type", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "required")

Schema = dict[str, Any]


def used(schema: Schema, values: list[Any]) -> Schema:
    """`schema` reduced to the properties that occur in `values`. Other properties are forbidden."""
    kept = {name: schema[name] for name in KEPT if name in schema}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if "items" in schema:
        kept["items"] = used(schema["items"], [item for value in values for item in value])
    elif "properties" in schema:
        names = sorted({name for value in values for name in value} & schema["properties"].keys())
        kept["properties"] = {
            name: used(schema["properties"][name], [v[name] for v in values if name in v]) for name in names
        }
        kept["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = used(
            schema["additionalProperties"], [item for value in values for item in value.values()]
        )
    return kept


def read() -> dict[str, Schema]:
    """The schemas by `apiVersion/kind`."""
    return json.loads(FILE.read_text())


def write(folder: Path) -> None:
    objects: dict[tuple[str, str], list[Any]] = {}
    for built in (*(combined(*c) for c in combinations(1)), *map(overlay, OVERLAYS)):
        for item in built.objects:
            objects.setdefault((item["apiVersion"], item["kind"]), []).append(
                {name: value for name, value in item.items() if name == "spec"}
            )
    written = {}
    for file in sorted(folder.glob("*.yaml")):
        for crd in yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader):
            for version in crd["spec"]["versions"]:
                key = (f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"])
                if key in objects:
                    schema = version["schema"]["openAPIV3Schema"]
                    written["/".join(key)] = used(schema, objects[key])
    FILE.write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
