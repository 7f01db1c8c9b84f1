"""The commands of docs/your-model.md, copied from the page, run in a copy of the project against a real TorchServe."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from serving import ROOT, free_ports

pytestmark = pytest.mark.integration

PAGE = ROOT / "docs" / "your-model.md"
LAST_SECTION = 5  # of the shorter form: serve and measure the first version


def blocks(kind: str, last_section: int) -> list[str]:
    """The code blocks of the road, in order, up to a section."""
    text = PAGE.read_text()
    road = text[text.index("## The whole road") : text.index("## From a folder")]
    road = road.partition(f"### {last_section + 1}. ")[0]
    return re.findall(rf"(?s)```{kind}\n(.*?)```", road)


def script(last_section: int = 7) -> str:
    """All commands; the definition is written where the page says that it is edited."""
    first, *others = blocks("sh", last_section)
    (definition,) = blocks("toml", last_section)
    edit = f"cat > build/bottles/bottles.toml <<'END'\n{definition}END\n"
    return "set -e\n" + "\n".join([first, edit, *others])


def follow(folder: Path, commands: str, seconds: float) -> str:
    """Run commands of the page in a folder that looks like a clone: what they printed. Ends all that they started."""
    for name in ("examples", "model_store", "mobilevision", "service", "handlers"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "bin").mkdir()
    for name, module in (("mobilevision", "-m mobilevision"), ("python", "")):
        command = folder / "bin" / name
        command.write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
        command.chmod(0o755)
    grpc, http = free_ports(2)
    commands = commands.replace("50051", str(grpc)).replace("50052", str(http))
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    output = folder / "output.txt"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            ["bash", "-c", commands], cwd=folder, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # the server is left in the background
    log = folder / "build" / "bottles" / "serve.log"
    assert code == 0, output.read_text() + (log.read_text() if log.is_file() else "")
    return output.read_text()


def check(folder: Path, printed: str, *versions: str) -> None:
    """The score that the training printed for each version is the one that `eval` measured."""
    trained = [json.loads(line)["top1"] for line in printed.splitlines() if line.startswith('{"top1"')]
    names = ("first", "second")[: len(versions)]
    reports = [json.loads((folder / "build" / "bottles" / f"{name}.json").read_text()) for name in names]
    for score, report, version in zip(trained, reports, versions, strict=True):
        assert report["scores"]["top1"] == pytest.approx(score, abs=0.01)
        assert report["model"]["version"] == version
        assert report["failures"]["count"] == 0
    assert all(label in printed for label in ("bottle", "bowl", "cup"))


@pytest.mark.timeout(600)
def test_the_road_to_a_measured_model_with_few_pictures(tmp_path: Path) -> None:
    commands = script(LAST_SECTION).replace("--train 64 --val 24", "--train 6 --val 8")
    assert "--train 6 " in commands
    check(tmp_path, follow(tmp_path, commands, 580.0), "1.0")


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
def test_the_road_as_the_page_has_it(tmp_path: Path) -> None:
    check(tmp_path, follow(tmp_path, script(), 1700.0), "1.0", "1.1")
    rollout = json.loads((tmp_path / "build" / "bottles" / "archives" / "rollout.json").read_text())
    assert rollout["bottles"]["stable"] == "1.1"
