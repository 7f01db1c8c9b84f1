"""`mobilevision models ...`: what is printed, what is written, and the exit codes. No network is built."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from handlers.contract.card import (
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
from model_store import zoo
from model_store.build import export
from model_store.build.errors import ExportError
from model_store.cli import commands
from model_store.verify import run as verify
from model_store.verify.golden import Check
from model_store.verify.run import Report
from model_store.weights.errors import CheckpointError

NAME = zoo.ENTRIES[0].name
MODULE = b"not really TorchScript"


def run(*arguments: str | Path) -> Any:
    # A wide terminal, so that rich does not break the messages that are looked for.
    return CliRunner(env={"COLUMNS": "300", "TERM": "dumb"}).invoke(
        commands.models_app(), [str(part) for part in arguments]
    )


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
    monkeypatch.setattr("model_store.build.archive.check", lambda _: None)  # takes seconds; test_archive.py tests it
    return names


def test_listing_needs_no_torch() -> None:
    code = (
        "import sys; from model_store.cli.commands import models_app; models_app()(['list'], standalone_mode=False);"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(commands.__file__).parents[2], capture_output=True, text=True, check=True
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
    assert "random: test" in shown
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
    monkeypatch.setattr("model_store.build.archive.check", lambda _: None)
    other = zoo.ENTRIES[1].name
    result = run("build", NAME, other, "--out", tmp_path)
    assert result.exit_code == 1
    assert "3 missing: [a]" in result.output
    assert (tmp_path / f"{other}.mar").is_file()


@pytest.mark.parametrize("verbose", [False, True])
def test_a_failed_export_is_one_line_and_its_traceback_is_for_the_asking(
    verbose: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fake(name: str, **_: Any) -> export.Exported:
        raise ExportError(f"exporting {name} failed: RuntimeError: no memory", detail="Traceback\n  many lines")

    monkeypatch.setattr(export, "export", fake)
    result = run("build", NAME, "--out", tmp_path, *(["--verbose"] if verbose else []))
    assert result.exit_code == 1
    assert f"error: {NAME}: exporting {NAME} failed: RuntimeError: no memory" in result.stderr
    assert ("many lines" in result.stderr) is verbose
    assert verbose or len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build"], "--all"),
        (["build", NAME, "--all"], "--all"),
        (["build", "mobilevit_xxs_clasify"], "did you mean mobilevit_xxs_classify"),
        (["show", "mobilevit_xxs_clasify"], "did you mean mobilevit_xxs_classify"),
        (["build", "--all", "--checkpoint", __file__], "name that one"),
        (["build", NAME, "--checkpoint", "/nowhere.pt"], "no such file"),
        (["build", NAME, "--layout", "cvnets"], "needs --checkpoint"),
        (["build", NAME, "--checkpoint", __file__, "--layout", "keras"], "no layout is called 'keras'"),
        (["build", NAME, "--checkpoint", __file__, "--random"], "excludes --checkpoint"),
        (["build", NAME, "--version", "next"], "one to three numbers"),
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


def test_verify_gets_the_way_of_the_gateway_from_who_mounts_the_commands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "some.json").write_text("{}")
    given: list[Any] = []

    def fake(paths: list[Path], _on_progress: Any, *, to_input: Any) -> list[Report]:
        given.append(to_input)
        return [Report(subject=path.name, checks=(Check("logits", 0, 1),)) for path in paths]

    def to_input(*_: Any) -> Any:
        raise AssertionError("this is not called here")

    monkeypatch.setattr(verify, "verify", fake)
    app = commands.models_app(to_input=to_input)
    result = CliRunner().invoke(app, ["verify", "--golden", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert given == [to_input]


def test_the_archive_says_what_it_is_where_it_differs_from_the_zoo(built: list[str], tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    own = (
        "--base",
        NAME,
        "--name",
        "pets",
        "--labels",
        tmp_path / "labels.txt",
        "--input",
        "128x96",
        "--channels",
        "RGB",
    )
    made = run("build", *own, "--out", tmp_path)
    assert made.exit_code == 0, made.output
    assert f"assumed, from {NAME}:" in made.output
    assert "[preprocess] mean" in made.output
    assert "[preprocess] channels" not in made.output
    assert "up to date" in run("build", *own, "--out", tmp_path).output
    assert "pets" in run("list", "--out", tmp_path).output
    shown = run("show", "pets", "--out", tmp_path).output
    assert "128x96 pixels" in shown
    assert "; RGB, mean 0 0 0" in shown
    assert "cat, dog" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--base", NAME), "--name"),
        ((NAME, "--labels", "a.txt"), "belongs to --base"),
        ((NAME, "--base", NAME, "--name", "a"), "or give --base"),
        (("--base", NAME, "--name", "a", "--input", "big"), "256x192"),
        (("--base", NAME, "--name", "a", "--mean", "1,2"), "three numbers"),
        (("--base", NAME, "--name", "a", "--channels", "GBR"), "channels"),
        (("absent.toml",), "No such file"),
    ],
)
def test_wrong_options_of_an_own_model_are_named(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    result = run("build", *arguments, "--out", tmp_path)
    assert result.exit_code == 2
    assert said in result.output


def test_init_writes_a_file_once(tmp_path: Path) -> None:
    assert run("init", "pets", "--base", NAME, "--dir", tmp_path).exit_code == 0
    assert 'name = "pets"' in (tmp_path / "pets.toml").read_text()
    again = run("init", "pets", "--base", NAME, "--dir", tmp_path)
    assert again.exit_code == 1
    assert "exists already" in again.output
    assert run("init", NAME, "--base", NAME, "--dir", tmp_path).exit_code == 2
