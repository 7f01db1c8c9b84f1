"""`models build` with wrong definitions, labels and checkpoints: exit code, one line on stderr, nothing written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_table import CASES, raw_of
from typer.testing import CliRunner

from model_store.cli import commands

BASE = "emo_1m_classify"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def build(folder: Path, *more: str | Path) -> Any:
    arguments = ["build", *more, "--out", folder / "out"]
    return CliRunner(env={"COLUMNS": "3000", "TERM": "dumb"}).invoke(
        commands.models_app(), [str(part) for part in arguments]
    )


def refused(folder: Path, *more: str | Path) -> str:
    """Run a build that must be refused in one line, and leave the archives as they are: the line."""
    out = folder / "out"
    out.mkdir()
    (out / "own.mar").write_bytes(b"an earlier archive")
    (out / "own.card.json").write_text("{}")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    result = build(folder, *more)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    if result.exit_code == 2:  # typer puts the usage and a box around the line
        return str(result.stderr)
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return str(line)


def definition(folder: Path, text: str = "", labels: str = '["a"]') -> Path:
    path = folder / "own.toml"
    path.write_text(f'name = "own"\nbase = "{BASE}"\nlabels = {labels}\n{text}')
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bsae = 1", "bsae: unknown key; did you mean base?"),
        ("= 1", "not TOML"),
        ('checkpoint = "absent.pt"', "absent.pt: no such file"),
        ('checkpoint = "."', "a folder without"),
        ("[head]\nwidth = 4\nrates = [1, 2, 3]", "has no such option"),
        ("[preprocess]\nmean = [123, 116, 103]", "divide by 255"),
        ('layout = "keras"\ncheckpoint = "x.pt"', "layout"),
        ("[input]\nwidth = 100000\nheight = 32", "width"),
        ("version = 3", "version"),
    ],
)
def test_definitions(tmp_path: Path, text: str, said: str) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pt")
    assert said in refused(tmp_path, definition(tmp_path, text))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x00" * 100, b"name = 'own'\n" * 2, b"a = " + b"[" * 100_000])
def test_files_that_are_no_definition(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "own.toml").write_bytes(content)
    assert "own.toml" in refused(tmp_path, tmp_path / "own.toml")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no labels"),
        (b"a\n\nb\n", "label 2 is empty"),
        (b"a\nb\na\n", "labels 1 and 3 are both 'a'"),
        (b"\xef\xbb\xbfa\r\nb\r\na\r\n", "labels 1 and 3 are both 'a'"),
        (b"a\xff\n", "not UTF-8"),
        (b"".join(b"label %d\n" % number for number in range(100_001)), "at most 100,000"),
        (b"".join(b"label %d\n" % number for number in range(100_000)), "has 1000 classes, labels.txt has 100000"),
        (b"\xef\xbb\xbfa\r\nb\r\n", "has 1000 classes, labels.txt has 2 labels"),
    ],
)
def test_labels(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    torch.save(raw_of("native"), tmp_path / "a.pt")
    assert said in refused(tmp_path, definition(tmp_path, 'checkpoint = "a.pt"', labels='"labels.txt"'))


@pytest.mark.parametrize("case", [case for case in CASES if case.result == "refused"], ids=lambda case: case.name)
def test_checkpoints(tmp_path: Path, case: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = case.write(tmp_path, raw_of("native"))
    line = refused(tmp_path, definition(tmp_path, f"checkpoint = {json.dumps(str(path))}", labels='"imagenet1k"'))
    assert case.said in line or "this is" in line or "does not fit" in line
    assert "must not be printed" not in capsys.readouterr().out


def _zeros(path: Path) -> None:
    """4 GB of zeros in a file of a few hundred bytes: one element, with strides of zero."""
    torch.save({"a": torch.zeros(1).expand(2**30)}, path)


def _sparse(path: Path) -> None:
    torch.save({"a": torch.zeros(2).to_sparse()}, path)


@pytest.mark.parametrize("write", [_zeros, _sparse])
def test_checkpoints_that_grow(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "a.pt")
    assert "a.pt" in refused(tmp_path, definition(tmp_path, 'checkpoint = "a.pt"', labels='"imagenet1k"'))


def test_options(tmp_path: Path) -> None:
    torch.save(raw_of("native"), tmp_path / "a.pt")
    own = ("--base", BASE, "--name", "own", "--checkpoint", tmp_path / "a.pt")
    (tmp_path / "five.txt").write_text("a\nb\nc\nd\ne\n")
    assert "has 1000 classes" in refused(tmp_path, *own, "--labels", tmp_path / "five.txt")


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    assert "no config.json" in refused(tmp_path, "--from", tmp_path / "hub", "--name", "own")
