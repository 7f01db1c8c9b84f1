"""`mobilevision keys new`: a key that is printed once, and lines that a server takes."""

import json
import re
import tomllib

import pytest
from typer.testing import CliRunner

from service.access import api_keys, callers_file
from service.access.callers import CallerLimits
from service.cli.main import app


def test_the_printed_entry_and_setting_know_the_printed_key() -> None:
    done = CliRunner().invoke(app, ["keys", "new", "camera-7"])
    assert done.exit_code == 0
    [key] = re.findall(r"^mv_\S+$", done.stdout, re.MULTILINE)
    entry = done.stdout[done.stdout.index("[[callers]]") : done.stdout.index("# Or set")]
    assert tomllib.loads(entry) == {"callers": [{"name": "camera-7", "sha256": [api_keys.digest(key).hex()]}]}
    setting = json.loads(done.stdout.rpartition("MOBILEVISION_ACCESS_KEYS='")[2].strip().removesuffix("'"))
    callers = callers_file.from_setting(setting, defaults=CallerLimits())
    assert callers.owner(key) == callers.by_name["camera-7"]
    assert done.stdout.count(key) == 1


@pytest.mark.parametrize("name", ["", "a b", "token:alice", "x" * 65, "anonymous", "other"])
def test_a_name_that_the_file_cannot_have_is_wrong_usage(name: str) -> None:
    done = CliRunner().invoke(app, ["keys", "new", name])
    assert done.exit_code == 2
    assert "mv_" not in done.output
