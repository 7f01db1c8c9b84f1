"""`mobilevision models ...`: what is printed, what is written, and the exit codes. No network is built."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from model_store import commands, export, verify, zoo
from model_store.card import (
    Agreement,
    Card,
    InputSize,
    Normalize,
    Output,
    Parity,
    Preprocess,
    Task,
    Weights,
    WeightsState,
)
from model_store.errors import CheckpointError
from model_store.golden import Check
from model_store.verify import Report

NAME = zoo.ENTRIES[0].name
MODULE = b"not really TorchScript"


def run(*arguments: str | Path) -> Any:
    # A wide terminal, so that rich does not break the messages that are looked for.
    return CliRunner(env={"COLUMNS": "300", "TERM": "dumb"}).invoke(commands.app, [str(part) for part in arguments])


def exported(name: str, state: WeightsState) -> export.Exported:
    card = Card(
        name=name,
        task=Task.CLASSIFY,
        family="mobilevit",
        variant="xxs",
        head="classifier",
        paper="",
        input=InputSize(height=256, width=256),
        preprocess=Preprocess(mode="squash"),
        normalize=Normalize(),
        labels=("cat",),
        outputs=(Output(name="scores", dtype="float32", shape=(1,)),),
        parameters=1,
        macs=1,
        weights=Weights(state=state, source="test", sha256="0" * 64),
        parity=Parity(scripted_max_abs_diff=0, reloaded_max_abs_diff=0, batch_row_max_abs_diff=0),
        bfloat16=Agreement(metric="top1", pictures=8, agreement=0.875, score_max_abs_diff=0.01),
        module_sha256=hashlib.sha256(MODULE).hexdigest(),
    )
    return export.Exported(card=card, module_bytes=MODULE)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Exports that are asked for, in order; a checkpoint makes them official or custom."""
    names: list[str] = []

    def fake(name: str, *, checkpoint: Path | None, official: bool = False, **_: Any) -> export.Exported:
        names.append(name)
        of_file = WeightsState.OFFICIAL if official else WeightsState.CUSTOM
        return exported(name, of_file if checkpoint else WeightsState.RANDOM)

    monkeypatch.setattr(export, "export", fake)
    return names


def test_listing_needs_no_torch() -> None:
    code = (
        "import sys; from model_store.commands import app; app(['list'], standalone_mode=False);"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(commands.__file__).parents[1], capture_output=True, text=True, check=True
    )
    assert all(entry.name in done.stdout for entry in zoo.ENTRIES)


def test_build_writes_once_and_lists_the_weights_as_random(built: list[str], tmp_path: Path) -> None:
    assert "not built" in run("list", "--out", tmp_path).output
    first = run("build", NAME, "--out", tmp_path)
    assert first.exit_code == 0, first.output
    assert "weights: random" in first.output
    assert (tmp_path / f"{NAME}.mar").is_file()
    again = run("build", NAME, "--out", tmp_path)
    assert "up to date, weights: random" in again.output
    assert built == [NAME]
    assert "weights: random" in run("list", "--out", tmp_path).output
    shown = run("show", NAME, "--out", tmp_path).output
    assert "weights: random" in shown
    assert "87.50 % of best classes as in float32, scores within 0.01, on 8 drawn pictures" in shown
    run("build", NAME, "--out", tmp_path, "--force")
    run("build", NAME, "--out", tmp_path, "--seed", "1")
    assert built == [NAME] * 3


def test_a_damaged_archive_is_built_again(built: list[str], tmp_path: Path) -> None:
    run("build", NAME, "--out", tmp_path)
    (tmp_path / f"{NAME}.mar").write_bytes(b"half")
    assert run("build", NAME, "--out", tmp_path).exit_code == 0
    assert built == [NAME] * 2


def test_trained_weights_are_not_replaced_by_random_ones(built: list[str], tmp_path: Path) -> None:
    checkpoint = tmp_path / "weights.pt"
    checkpoint.write_bytes(b"1")
    run("build", NAME, "--out", tmp_path, "--checkpoint", checkpoint)
    kept = run("build", NAME, "--out", tmp_path)
    assert "kept, weights: custom" in kept.output
    assert "up to date" in run("build", NAME, "--out", tmp_path, "--checkpoint", checkpoint).output
    assert built == [NAME]
    checkpoint.write_bytes(b"2")
    run("build", NAME, "--out", tmp_path, "--checkpoint", checkpoint)
    assert built == [NAME] * 2
    assert "weights: random" in run("build", NAME, "--out", tmp_path, "--force").output


def test_build_goes_on_after_a_failure_and_reports_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fake(name: str, **_: Any) -> export.Exported:
        if name == NAME:
            raise CheckpointError("3 missing: [a]")
        return exported(name, WeightsState.RANDOM)

    monkeypatch.setattr(export, "export", fake)
    other = zoo.ENTRIES[1].name
    result = run("build", NAME, other, "--out", tmp_path)
    assert result.exit_code == 1
    assert "3 missing: [a]" in result.output
    assert (tmp_path / f"{other}.mar").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build"], "--all"),
        (["build", NAME, "--all"], "--all"),
        (["build", "mobilevit_xxs_clasify"], "did you mean mobilevit_xxs_classify"),
        (["show", "mobilevit_xxs_clasify"], "did you mean mobilevit_xxs_classify"),
        (["build", "--all", "--checkpoint", __file__], "name that one"),
        (["build", NAME, "--checkpoint", "/nowhere.pt"], "no such file"),
        (["build", NAME, "--layout", "cvnets"], "--checkpoint"),
        (["verify"], "golden file"),
        (["verify", "--golden", "/nowhere"], "no such file"),
    ],
)
def test_usage_errors_say_what_to_do(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("checks", "error", "code", "word"),
    [
        ((Check("logits", 1e-6, 1e-4),), "", 0, "pass"),
        ((Check("logits", 1e-6, 1e-4), Check("boxes", 1.0, 1e-4)), "", 1, "FAIL"),
        ((Check("logits", float("nan"), 1e-4),), "", 1, "FAIL"),
        ((), "not a golden file", 2, "UNUSABLE"),
    ],
)
def test_verify_exit_codes(
    checks: tuple[Check, ...], error: str, code: int, word: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "some.json").write_text("{}")

    def fake(paths: list[Path], on_progress: Any, **_: Any) -> list[Report]:
        reports = [Report(subject=path.name, checks=checks, error=error) for path in paths]
        for report in reports:
            on_progress(report)
        return reports

    monkeypatch.setattr(verify, "verify", fake)
    result = run("verify", "--golden", tmp_path)
    assert result.exit_code == code, result.output
    assert word in result.output
    assert "some.json" in result.output


def test_verify_of_an_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    assert run("verify", tmp_path / "broken.json").exit_code == 2
    (tmp_path / "broken.json").unlink()
    assert run("verify", tmp_path).exit_code == 2
