"""The client without the server: what is imported, and what the command says where the extras are not installed."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from mobilevision.cli import main
from mobilevision.cli.server_commands import COMMANDS
from service.cli.main import app

ROOT = Path(__file__).parents[3]

# Modules of the packages that only extras install. A client-only installation has none of them.
EXTRAS = {
    *(
        "cryptography",
        "cv2",
        "grpc_health",
        "grpc_reflection",
        "grpc_status",
        "matplotlib",
        "opentelemetry",
        "prometheus_client",
    ),
    *("pycocotools", "pydantic_settings", "safetensors", "torch", "ts", "yaml"),
}

# The finders pretend that some packages are not installed, so that imports fail as they would without them.
HIDE = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *arguments):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, *arguments)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""
IMPORT_ALL = """
import mobilevision.client, mobilevision.drawing, mobilevision.results, mobilevision.tasks
import mobilevision.cli.calls, mobilevision.cli.output, mobilevision.eval.commands
"""
PRINT_OURS = """
print(*(name for name in sys.modules if name.split('.')[0] in ('service', 'handlers', 'model_store')))
"""


def python(program: str, *arguments: str, hidden: set[str] = EXTRAS) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"HIDDEN = {hidden!r}\n{HIDE}{program}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


HELP = [(), ("classify",), ("detect",), ("segment",), ("served",), ("eval",), ("replay",)]
CALL = ("classify", __file__, "--server", "127.0.0.1:1")
SERVER_COMMANDS = [
    ("serve", "demo_classify", "--archives", "folder"),
    ("models", "build", "demo_classify"),
    ("tune", "demo_classify", "--goal-ms", "50"),
    ("torchserve",),
    ("keys", "new", "camera"),
    ("demo", "--out", "folder"),
]
# One process for all commands: each process would import everything again.
INVOKE_ALL = """
import json
from typer.testing import CliRunner
from mobilevision.cli.main import app

results = [CliRunner().invoke(app, arguments) for arguments in json.loads(sys.argv[1])]
print(json.dumps([[result.exit_code, result.stdout, result.stderr] for result in results]))
"""


@pytest.fixture(scope="module")
def without_extras() -> dict[tuple[str, ...], tuple[int, str, str]]:
    """Exit code, standard output and standard error of the commands in a client-only installation."""
    commands = [*((*command, "--help") for command in HELP), CALL, *SERVER_COMMANDS]
    done = python(INVOKE_ALL, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    return dict(zip(commands, map(tuple, json.loads(done.stdout)), strict=True))


def test_the_client_imports_only_the_protocol_messages_of_the_server() -> None:
    # typer requires pydantic, so that the command line has it; the client itself needs neither.
    done = python(IMPORT_ALL + PRINT_OURS, hidden=EXTRAS | {"pydantic"})
    assert done.returncode == 0, done.stderr
    assert {name for name in done.stdout.split() if not name.startswith("service.pb")} == {"service"}


@pytest.mark.parametrize("command", HELP)
def test_help_needs_no_extra_and_has_an_example(without_extras, command):
    code, out, err = without_extras[*command, "--help"]
    assert (code, err) == (0, "")
    assert "Usage:" in out
    assert not command or f"Example: mobilevision {command[0]}" in out


def test_calls_need_no_extra(without_extras):
    code, _, err = without_extras[CALL]
    assert code == 1
    assert "no server answers at 127.0.0.1:1" in err


@pytest.mark.parametrize("command", SERVER_COMMANDS, ids=lambda command: command[0])
def test_a_missing_server_is_one_line_that_says_what_to_install(without_extras, command):
    code, out, err = without_extras[command]
    assert (code, out) == (1, "")
    [line] = err.splitlines()
    assert line.startswith(f"error: `{command[0]}` needs the server: pip install 'mobilevision[serve,models]'")


def test_a_defect_of_the_server_is_no_missing_extra() -> None:
    hide_a_module = "import sys\nsys.modules['service.cli.rollout'] = None\n"
    program = hide_a_module + "from mobilevision.cli.main import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", program, "models", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "service.cli.rollout" in done.stderr


def test_help_imports_no_server_and_shows_the_texts_of_its_commands() -> None:
    program = "from typer.testing import CliRunner\nfrom mobilevision.cli.main import app\n"
    program += "print(CliRunner().invoke(app, ['--help']).stdout, file=sys.stderr)\n"
    done = python(program + PRINT_OURS, hidden=set())
    assert done.returncode == 0, done.stderr
    assert {name for name in done.stdout.split() if not name.startswith("service.pb")} == {"service"}
    assert set(COMMANDS) | {"demo"} <= set(done.stderr.split())
    server = typer.main.get_command(app)
    for name, text in COMMANDS.items():
        assert " ".join((server.commands[name].help or "").partition("\n\n")[0].split()) == text


def test_a_command_of_the_server_has_its_own_help() -> None:
    for command in ("serve", "models"):
        done = CliRunner().invoke(main.app, [command, "--help"])
        assert done.exit_code == 0
        assert f"Usage: mobilevision {command}" in done.stdout
    assert "build" in done.stdout


def test_base_dependencies_are_those_of_the_client() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {requirement.partition(">=")[0] for requirement in project["dependencies"]}
    assert names == {"googleapis-common-protos", "grpcio", "numpy", "pillow", "protobuf", "rich", "typer"}
    assert "mobilevision[serve]" in project["optional-dependencies"]["models"]
