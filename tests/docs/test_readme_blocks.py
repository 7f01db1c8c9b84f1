"""Every code block of the README is run as it stands, where it runs offline: Python against a small server.

Shell blocks: each `mobilevision` command exists with the options that are written, each `make` target and each file
exists. Blocks that build, serve or need a cluster are not run here; `make demo` and the integration tests do that.
"""

import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import typer

from mobilevision.cli.main import app
from mobilevision.cli.server_commands import COMMANDS
from service.cli.main import app as server
from service.pb.mobilevision.v1 import vision_pb2, vision_pb2_grpc

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall((ROOT / "README.md").read_text())
PYTHON = [text for language, text in BLOCKS if language == "python"]
SHELL = [text for language, text in BLOCKS if language != "python"]
PICTURE = ROOT / "docs" / "pictures" / "shapes_1.jpg"


def commands() -> list[list[str]]:
    lines = [line for text in SHELL for line in text.replace("\\\n", " ").splitlines()]
    parts = [part.strip() for line in lines for part in line.partition(" #")[0].split("&&")]
    return [shlex.split(part) for part in parts if part and "$(" not in part]


class Servicer(vision_pb2_grpc.VisionServiceServicer):
    """Answers every call with one result that has no content but a label."""

    def Detect(self, request: Any, context: Any) -> Any:
        assert request.image == PICTURE.read_bytes()
        label = vision_pb2.Label(id=1, name="car", score=0.75)
        return vision_pb2.DetectResponse(detections=[vision_pb2.Detection(label=label)])


def test_there_are_blocks_of_both_kinds() -> None:
    assert len(PYTHON) == 1
    assert len(commands()) > 10


@pytest.mark.parametrize("text", PYTHON)
def test_a_python_block_runs(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "street.jpg").write_bytes(PICTURE.read_bytes())
    monkeypatch.chdir(tmp_path)
    fake = grpc.server(ThreadPoolExecutor(2))
    vision_pb2_grpc.add_VisionServiceServicer_to_server(Servicer(), fake)
    port = fake.add_insecure_port("127.0.0.1:0")
    fake.start()
    try:
        assert "localhost:50051" in text
        exec(compile(text.replace("localhost:50051", f"127.0.0.1:{port}"), "README.md", "exec"), {})
    finally:
        fake.stop(None).wait()
    assert "car 0.75" in capsys.readouterr().out


@pytest.mark.parametrize("words", [words for words in commands() if words[0].endswith("mobilevision")], ids=" ".join)
def test_a_command_of_a_shell_block_exists(words: list[str]) -> None:
    rest = words[1:]
    command: Any = typer.main.get_command(server if rest[0] in COMMANDS else app)
    while hasattr(command, "commands"):
        assert rest[0] in command.commands, f"there is no command {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
    assert {word for word in rest if word.startswith("--")} <= known
    for word in rest:
        if word.startswith("docs/"):
            assert (ROOT / word).is_file()


@pytest.mark.parametrize("words", [words for words in commands() if words[0] == "make"], ids=" ".join)
def test_a_target_of_make_exists(words: list[str]) -> None:
    assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("words", [words for words in commands() if words[:2] == ["python", "-m"]], ids=" ".join)
def test_a_module_of_a_shell_block_exists(words: list[str]) -> None:
    path = ROOT.joinpath(*words[2].split("."))
    source = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    whole = source + "".join(each.read_text() for each in (ROOT / "benchmarks").glob("*.py"))
    for word in words:
        if word.startswith("--"):
            assert f'"{word}"' in whole
