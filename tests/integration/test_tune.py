"""`mobilevision tune` as a user runs it, short."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serving import ROOT

from service.core.settings import load

pytestmark = pytest.mark.integration

MODEL = "mobilevit_xxs_classify"


def command(archives: Path, out: Path, *more: str) -> list[str]:
    base = [sys.executable, "-m", "service", "tune", MODEL, "--archives", str(archives), "--out", str(out)]
    return [*base, "--no-plot", "--quick", "--seconds", "0.5", *more]


@pytest.mark.timeout(600)
def test_a_sweep_ends_with_settings_that_serve_reads(archives: Path, tmp_path: Path) -> None:
    goal = ["--goal-ms", "60000", "--clients", "2"]
    done = subprocess.run(
        command(archives, tmp_path, *goal), check=False, cwd=ROOT, capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stderr
    assert "best" in done.stdout
    report = json.loads((tmp_path / f"{MODEL}.json").read_text())
    best = max(report["points"], key=lambda point: point["per_second"])
    assert all(p["per_second"] > 0 and 0 < p["p50_ms"] <= p["p99_ms"] for p in report["points"])
    settings = load(tmp_path / f"{MODEL}.toml")
    assert settings.models == (MODEL,)
    assert settings.archives == archives.resolve()
    chosen = {name: getattr(settings, name) for name in best["candidate"]}
    assert chosen == best["candidate"]


@pytest.mark.timeout(600)
def test_ctrl_c_stops_the_server_and_says_what_there_is(archives: Path, tmp_path: Path) -> None:
    # `env`: where tests run in the background of a script, SIGINT is ignored, and children inherit that.
    wanted = ["env", "--default-signal=INT", *command(archives, tmp_path, "--goal-ms", "50")]
    process = subprocess.Popen(wanted, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 120
    while not children.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server = int(children.read_text().split()[0])
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopped" in printed
    assert "Traceback" not in printed
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)


def test_a_model_that_was_not_built_is_told_before_anything_starts(archives: Path, tmp_path: Path) -> None:
    wrong = [argument.replace(MODEL, "no_such_model") for argument in command(archives, tmp_path, "--goal-ms", "50")]
    refused = subprocess.run(wrong, check=False, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 1
    assert "no_such_model" in refused.stderr
    assert "Traceback" not in refused.stderr
