"""Print the requirements pyproject.toml states, of the named extras too: what is installed before the code is there."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
for requirements in (project["dependencies"], *(project["optional-dependencies"][extra] for extra in sys.argv[1:])):
    print("\n".join(requirements))
