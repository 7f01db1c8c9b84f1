"""Print the requirements in pyproject.toml, with those of the named extras: installed before the code is copied."""

import sys
import tomllib
from pathlib import Path


def requirements_of(extras: list[str]) -> list[str]:
    """The base requirements, and those of `extras`. An extra may name others of ours: `mobilevision[serve]`."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    found, own = list(project["dependencies"]), f"{project['name']}["
    for extra in extras:
        for requirement in project["optional-dependencies"][extra]:
            if requirement.startswith(own):
                found += requirements_of(requirement.removeprefix(own).removesuffix("]").split(","))
            else:
                found.append(requirement)
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    print("\n".join(requirements_of(sys.argv[1:])))
