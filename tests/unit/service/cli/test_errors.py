"""How the server's commands fail: one line that says what to do, exit code 1."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from service.cli import errors
from service.cli.main import app
from service.core import logs


@pytest.mark.parametrize("kind", errors.EXPECTED, ids=lambda kind: kind.__name__)
def test_an_expected_error_is_one_line(kind: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    message = "the value of [brackets] is wrong; " + "long " * 50
    with pytest.raises(typer.Exit) as raised, errors.reported():
        raise kind(message)
    assert raised.value.exit_code == 1
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), errors.reported():
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("serve", "absent", "--archives", "FOLDER"), "no archive of 'absent'"),
        (("serve", "--config", "FOLDER/absent.toml"), "absent.toml"),
        (("torchserve", "--config", "FOLDER/absent.toml"), "absent.toml"),
    ],
)
def test_commands_report_expected_errors(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "configure", lambda **_: None)  # would outlive the test
    done = CliRunner().invoke(app, [argument.replace("FOLDER", str(tmp_path)) for argument in arguments])
    assert done.exit_code == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize("command", [("serve",), ("torchserve",), ("tune",)])
def test_help_has_an_example(command: tuple[str, ...]) -> None:
    assert f"mobilevision {command[0]}" in CliRunner().invoke(app, [*command, "--help"]).stdout
