"""`mobilevision models pull`: what is printed, and the exit codes."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_site import ENTRY, Site, saved
from fakes import toy_card
from typer.testing import CliRunner

from handlers.contract.card import WeightsState
from model_store.build import archive, export
from model_store.cli import commands


def run(*arguments: str | Path) -> Any:
    return CliRunner(env={"COLUMNS": "300", "TERM": "dumb"}).invoke(
        commands.models_app(), [str(part) for part in arguments]
    )


def test_the_command_pulls_and_build_uses_it(
    site: Site, tmp_path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.files["weights.pt"] = good
    store, out = tmp_path / "store", tmp_path / "out"
    arguments = ("pull", ENTRY.name, "--url", site.url("weights.pt"), "--layout", "native", "--store", store)
    first = run(*arguments)
    assert first.exit_code == 0, first.output
    for text in (", recorded", "all of them fit", hashlib.sha256(good).hexdigest()):
        assert text in first.output
    assert "already there" in run(*arguments).output
    asked: list[dict[str, Any]] = []

    def fake(name: str, *, checkpoint: Path | None, **options: Any) -> export.Exported:
        asked.append({"checkpoint": checkpoint, **options})
        card = toy_card(name=name, weights=WeightsState.CUSTOM if checkpoint else WeightsState.RANDOM)
        digest = hashlib.sha256(b"module").hexdigest()
        return export.Exported(card=card.model_copy(update={"module_sha256": digest}), module_bytes=b"module")

    monkeypatch.setattr(export, "export", fake)
    monkeypatch.setattr(archive, "check", lambda _: None)  # there is no module to load in these
    built = run("build", ENTRY.name, "--out", out, "--store", store)
    assert "weights: custom" in built.output, built.output
    path, address = store / f"{ENTRY.name}.pt", site.url("weights.pt")
    assert asked == [{"checkpoint": path, "layout": "native", "source": address, "official": False}]
    assert "weights: random" in run("build", ENTRY.name, "--out", out, "--store", store, "--random", "--force").output
    (store / f"{ENTRY.name}.pt").write_bytes(b"damaged")
    damaged = run("build", ENTRY.name, "--out", out, "--store", store)
    assert damaged.exit_code == 1
    assert f"pull again: mobilevision models pull {ENTRY.name}" in damaged.output


def test_the_command_takes_a_file_and_reports_every_misfit(
    tmp_path: Path, state: dict[str, torch.Tensor], good: bytes
) -> None:
    (tmp_path / "mine.pt").write_bytes(good)
    done = run("pull", ENTRY.name, "--from", tmp_path / "mine.pt", "--layout", "native", "--store", tmp_path / "store")
    assert done.exit_code == 0, done.output
    names = list(state)
    saved({"stray": torch.zeros(1), **{name: state[name] for name in names[2:]}}, tmp_path, "mine.pt")
    failed = run(
        "pull", ENTRY.name, "--from", tmp_path / "mine.pt", "--layout", "native", "--store", tmp_path / "store"
    )
    assert failed.exit_code == 1
    for text in (f"2 missing: {names[0]}, {names[1]}", "1 unexpected: stray"):
        assert text in failed.output
    assert len(failed.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mobilevit_xxs_clasify"], "did you mean mobilevit_xxs_classify"),
        ([ENTRY.name, "--from", "a", "--url", "b"], "exclude each other"),
        ([ENTRY.name, "--published"], "belongs to --from"),
        ([ENTRY.name, "--sha256", "abc"], "64 hexadecimal digits"),
        ([ENTRY.name, "--layout", "nobodys"], "no layout is called"),
    ],
)
def test_usage_errors(arguments: list[str], message: str) -> None:
    result = run("pull", *arguments)
    assert result.exit_code == 2
    assert message in result.output
