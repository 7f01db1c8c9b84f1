"""The commands of a roll-out: the file they write, the changes they refuse, and the comparison of two versions."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from fakes import toy_card
from typer.testing import CliRunner

from handlers.contract.card import Card
from model_store.build import archive
from service.cli.main import app
from service.core.types import RequestRecord
from service.observability.metrics import Metrics
from service.serving import rollout_spec
from service.serving.rollout_spec import Entry

NAME = "toy_classify"
MODULE = b"module"


def card(version: str, **changes: object) -> Card:
    digest = hashlib.sha256(MODULE).hexdigest()
    return toy_card().model_copy(update={"version": version, "module_sha256": digest, **changes})


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["models", *map(str, arguments)])


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(archive, "check", lambda path: None)  # takes a process
    archive.write(tmp_path / "archives", card("1.0"), MODULE)
    return tmp_path / "archives"


@pytest.fixture
def new(tmp_path: Path, archives: Path) -> Path:
    return archive.write(tmp_path / "new", card("1.1"), MODULE)


def entry(archives: Path) -> Entry:
    return rollout_spec.read(archives / "rollout.json")[NAME]


def test_a_roll_out_from_canary_to_promote_and_rollback(archives: Path, new: Path) -> None:
    done = run("canary", NAME, "--archive", new, "--shadow", 0.05, "--archives", archives)
    assert done.exit_code == 0, done.output
    assert entry(archives) == Entry(stable="1.0", candidate="1.1", shadow=0.05)
    assert (archives / f"{NAME}@1.1.mar").read_bytes() == new.read_bytes()
    assert Card.read(archives / f"{NAME}@1.1.card.json").version == "1.1"
    run("canary", NAME, "--weight", 0.5, "--archives", archives)
    assert entry(archives) == Entry(stable="1.0", candidate="1.1", weight=0.5, shadow=0.05)
    assert "1.0" in run("promote", NAME, "--archives", archives).output
    assert entry(archives) == Entry(stable="1.1", previous="1.0")
    assert run("rollback", NAME, "--archives", archives).exit_code == 0
    assert entry(archives) == Entry(stable="1.0")
    run("canary", NAME, "--version", "1.1", "--weight", 0.1, "--archives", archives)
    run("rollback", NAME, "--archives", archives)
    assert entry(archives) == Entry(stable="1.0")


def test_impossible_changes_are_refused_and_nothing_is_written(archives: Path, tmp_path: Path, new: Path) -> None:
    labels = archive.write(tmp_path / "labels", card("1.2", labels=("cat", "dog")), MODULE)
    same = archive.write(tmp_path / "same", card("1.0"), MODULE)
    for arguments, message in (
        (("canary", NAME, "--weight", 0.1), "no candidate yet"),
        (("canary", NAME, "--archive", labels), "other labels"),
        (("canary", NAME, "--archive", same), "build it as another"),
        (("canary", NAME, "--archive", tmp_path / "absent.mar"), "not a mobilevision archive"),
        (("canary", NAME, "--version", "7"), "no archive of version 7"),
        (("canary", "absent", "--archive", new), "no archive of 'absent'"),
        (("promote", NAME), "no candidate to promote"),
        (("rollback", NAME), "neither a candidate"),
    ):
        done = run(*arguments, "--archives", archives)
        assert done.exit_code == 1, arguments
        assert message in " ".join(done.output.split())
        assert not (archives / "rollout.json").exists()
    assert not list(archives.glob("*@*"))


def test_a_version_keeps_its_content(archives: Path, new: Path, tmp_path: Path) -> None:
    assert run("canary", NAME, "--archive", new, "--archives", archives).exit_code == 0
    assert run("canary", NAME, "--archive", new, "--archives", archives).exit_code == 0
    other = archive.write(tmp_path / "other", card("1.1", paper="another"), MODULE)
    done = run("canary", NAME, "--archive", other, "--archives", archives)
    assert done.exit_code == 1
    assert "keeps its content" in " ".join(done.output.split())


@pytest.fixture
def metrics() -> Metrics:
    found = Metrics()
    found.rollouts.versions_served(NAME, settled=True, shares={"1.0": ("stable", 0.9), "1.1": ("candidate", 0.1)})
    for version, count in (("1.0", 9), ("1.1", 3)):
        for _ in range(count):
            record = RequestRecord(
                "", "Classify", NAME, version=version, stage_seconds={"queue": 0.002, "inference": 0.001}
            )
            found.observe_request(record, code="OK", reason=None, duration_seconds=0.003)
    for share in (1.0, 1.0, 1.0, 0.0):
        found.rollouts.agreed(NAME, stable="1.0", candidate="1.1", metric="top1", share=share)
    found.rollouts.shadowed(NAME, "1.1", "dropped")
    return found


@pytest.fixture
def gateway(metrics: Metrics) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(metrics.page())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ((), 0, "agrees with 1.0 to 75.00% (top1; 4 pictures compared, 0 failed, 1 dropped"),
        (("--at-least", 0.7, "--pictures", 4), 0, "enough"),
        (("--at-least", 0.8, "--pictures", 4), 1, "too little"),
        (("--at-least", 0.7), 1, "too few pictures"),
    ],
)
def test_compare_shows_the_versions_and_whether_they_agree_enough(
    gateway: str, options: tuple[object, ...], code: int, words: str
) -> None:
    done = run("compare", NAME, "--http", gateway, *options)
    assert done.exit_code == code, done.output
    assert words in " ".join(done.output.split())
    rows = [line.split()[:5] for line in done.output.splitlines() if line.strip().startswith("1.") and "%" in line]
    assert rows[:2] == [["1.0", "stable", "90%", "9", "0"], ["1.1", "candidate", "10%", "3", "0"]]


def test_compare_adds_up_several_gateways(gateway: str) -> None:
    done = run("compare", NAME, "--http", gateway, "--http", gateway, "--at-least", 0.7, "--pictures", 8)
    assert done.exit_code == 0
    assert "8 pictures compared" in " ".join(done.output.split())


def test_compare_fails_without_metrics_of_the_model(gateway: str) -> None:
    assert run("compare", "absent", "--http", gateway).exit_code == 1
    done = run("compare", NAME, "--http", "127.0.0.1:1")
    assert done.exit_code == 1
    assert "--http" in done.output
