"""`mobilevision eval` against servers that answer, refuse, vanish and change: report, journal, exit code."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import eval_sets
import grpc
import numpy as np
import pytest
from eval_server import LABELS, Servicer, invoke, through_gateway

from mobilevision.client import VisionClient
from mobilevision.eval import datasets, run
from mobilevision.eval.answers import Outcome
from mobilevision.eval.errors import ServerFailed
from mobilevision.eval.journal import Journal
from mobilevision.tasks import Task
from service.core import errors
from service.pb.mobilevision.v1 import vision_pb2_grpc


@pytest.fixture
def servicer() -> Servicer:
    return Servicer()


@pytest.fixture
def server(servicer: Servicer) -> Iterator[grpc.Server]:
    server = grpc.server(ThreadPoolExecutor(8))
    vision_pb2_grpc.add_VisionServiceServicer_to_server(servicer, server)
    server.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield server
    server.stop(None).wait()


@pytest.fixture
def target(server: Any) -> str:
    return f"127.0.0.1:{server.port}"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_LONGEST_WAIT_SECONDS", 0.001)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve pictures, of which nine look like what they are."""
    rows = [(LABELS[i % 3], i % 3 if i < 9 else (i + 1) % 3) for i in range(12)]
    return eval_sets.imagenet(tmp_path / "set", rows)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return tmp_path / "out" / "report.json"


def evaluate(target: str, pictures: Path, report: Path, *options: object) -> Any:
    return invoke("classify", pictures, "--server", target, "--out", report, *options)


def journal_of(report: Path) -> Path:
    return report.with_name("report.json.journal")


def test_the_report_and_the_table(target: str, servicer: Servicer, pictures: Path, report: Path) -> None:
    result = evaluate(target, pictures, report)
    assert result.exit_code == 0, result.output
    assert servicer.calls == 12
    for text in ("toy, weights: custom", "12 of 12 pictures", "75.00", "69.00", "+6.00"):
        assert text in result.stdout
    content = json.loads(report.read_text())
    assert content["scores"] == {"top1": 75.0, "top5": 100.0}
    assert content["published"] == {"top1": 69.0}
    assert content["model"]["module_sha256"] == "a" * 64
    assert content["dataset"] | {"fingerprint": ""} == {
        "layout": "imagenet",
        "folder": str(pictures),
        "fingerprint": "",
        "pictures": 12,
        "evaluated": 12,
        "public": False,
        "notes": [],
    }
    assert content["skipped"] == {"count": 0, "by_reason": {}, "files": []}
    assert content["per_class"] == {"dark": 75.0, "gray": 75.0, "bright": 75.0}
    assert content["truth_per_class"] == {"dark": 4, "gray": 4, "bright": 4}
    assert content["failures"] == {"count": 0, "by_reason": {}, "pictures": []}
    assert content["run"]["resumed"] == 0
    assert not journal_of(report).exists()


def test_a_limit_takes_the_same_pictures_each_time(
    target: str, servicer: Servicer, pictures: Path, report: Path
) -> None:
    assert "5 of 12 pictures" in evaluate(target, pictures, report, "--limit", 5).stdout
    first = json.loads(report.read_text())["scores"]
    evaluate(target, pictures, report, "--limit", 5, "--concurrency", 1)
    assert json.loads(report.read_text())["scores"] == first
    assert servicer.calls == 10


def test_failed_pictures_count_as_wrong_and_are_listed(
    target: str, servicer: Servicer, pictures: Path, report: Path
) -> None:
    last = datasets.read(pictures, task=Task.CLASSIFY, labels=LABELS).samples[-1]
    servicer.on_call = lambda call: last.image.unlink() if call == 1 else None
    servicer.refuse = lambda call: errors.ImageCorrupt("broken data") if call in {2, 3} else None
    result = evaluate(target, pictures, report, "--concurrency", 1)
    assert result.exit_code == 1
    content = json.loads(report.read_text())
    assert content["failures"]["by_reason"] == {"IMAGE_CORRUPT": 2, "FILE_UNREADABLE": 1}
    assert content["failures"]["count"] == 3
    assert {"picture": last.key, "reason": "FILE_UNREADABLE"}.items() <= next(
        row for row in content["failures"]["pictures"] if row["picture"] == last.key
    ).items()
    assert content["scores"]["top5"] == pytest.approx(100 * 9 / 12)
    assert "3 pictures failed" in result.stderr
    assert "2 IMAGE_CORRUPT, 1 FILE_UNREADABLE" in result.stderr
    assert "broken data" in result.stderr


def test_a_failure_without_a_reason_fails_one_picture_only(
    target: str, servicer: Servicer, pictures: Path, report: Path
) -> None:
    (pictures / "val" / "dark" / "p0.JPEG").write_bytes(b"no picture")  # the double's own code breaks on it
    assert evaluate(target, pictures, report).exit_code == 1
    assert json.loads(report.read_text())["failures"]["by_reason"] == {"UNKNOWN": 1}


def test_calls_are_repeated_while_the_server_is_busy(
    target: str, servicer: Servicer, pictures: Path, report: Path
) -> None:
    busy = errors.QueueFull("full", retry_after_seconds=0.001)
    servicer.refuse = lambda call: busy if call % 2 else None
    assert evaluate(target, pictures, report, "--concurrency", 1).exit_code == 0
    servicer.refuse = lambda _: errors.ModelNotReady("starting")
    result = evaluate(target, pictures, report, "--limit", 1)
    assert result.exit_code == 1
    assert json.loads(report.read_text())["failures"]["by_reason"] == {"MODEL_NOT_READY": 1}


def test_an_interrupted_run_is_continued(
    target: str, servicer: Servicer, pictures: Path, report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Journal.append

    def interrupted(self: Journal, outcome: Outcome) -> None:
        real(self, outcome)
        if len(self.path.read_bytes().splitlines()) == 6:  # one of them says what the run is
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "append", interrupted)
    result = evaluate(target, pictures, report, "--concurrency", 1)
    assert result.exit_code == 130
    assert "run the same command again" in result.stderr
    assert not report.exists()
    monkeypatch.setattr(Journal, "append", real)
    servicer.calls = 0
    result = evaluate(target, pictures, report)
    assert result.exit_code == 0, result.output
    assert "5 of 12 pictures were answered by an earlier run" in result.stderr
    assert servicer.calls == 7
    content = json.loads(report.read_text())
    assert content["scores"] == {"top1": 75.0, "top5": 100.0}
    assert content["run"]["resumed"] == 5


def leave_a_journal(target: str, servicer: Servicer, pictures: Path, report: Path) -> None:
    """A run that the server ends half way."""
    servicer.refuse = lambda call: errors.ShuttingDown("draining") if call > 5 else None
    result = evaluate(target, pictures, report, "--concurrency", 1)
    assert result.exit_code == 1
    assert "SHUTTING_DOWN" in result.stderr
    assert journal_of(report).exists()
    servicer.refuse = lambda _: None
    servicer.calls = 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s, _: setattr(s, "digest", "b" * 64), "module_sha256 was 'aaaa"),
        (lambda s, _: setattr(s, "version", "2.0"), "version was '1.0', is '2.0'"),
        (lambda _, p: (p / "val/dark/p0.JPEG").rename(p / "val/dark/q0.JPEG"), "dataset fingerprint was"),
    ],
    ids=["digest", "version", "dataset"],
)
def test_a_journal_of_another_model_is_refused_without_fresh(
    change: Any, said: str, target: str, servicer: Servicer, pictures: Path, report: Path
) -> None:
    leave_a_journal(target, servicer, pictures, report)
    change(servicer, pictures)
    servicer.refuse = lambda call: None
    result = evaluate(target, pictures, report)
    assert result.exit_code == 1
    assert said in result.stderr
    assert "--fresh" in result.stderr
    assert servicer.calls == 0
    evaluate(target, pictures, report, "--fresh")
    assert servicer.calls == 12
    assert json.loads(report.read_text())["run"]["resumed"] == 0


def test_failed_pictures_are_sent_again_by_the_next_run(
    target: str, servicer: Servicer, pictures: Path, report: Path
) -> None:
    def refuse(call: int) -> errors.ServiceError | None:
        return errors.ImageCorrupt("broken") if call == 2 else errors.ShuttingDown("bye") if call > 5 else None

    servicer.refuse = refuse
    assert evaluate(target, pictures, report, "--concurrency", 1).exit_code == 1
    servicer.refuse, servicer.calls = lambda _: None, 0
    assert evaluate(target, pictures, report).exit_code == 0
    assert servicer.calls == 12 - 4


def test_a_model_that_is_replaced_meanwhile_ends_the_run(
    target: str, servicer: Servicer, pictures: Path, report: Path
) -> None:
    servicer.on_call = lambda call: setattr(servicer, "version", "2.0") if call == 3 else None
    result = evaluate(target, pictures, report, "--concurrency", 1)
    assert result.exit_code == 1
    assert "toy 2.0 answers now, the run began with toy 1.0" in result.stderr
    assert not report.exists()
    servicer.version = "1.0"
    servicer.on_call = lambda call: setattr(servicer, "digest", "b" * 64)
    result = evaluate(target, pictures, report, "--fresh")
    assert "was replaced during the run" in result.stderr
    assert not report.exists()


def test_a_server_that_goes_away_ends_the_run_and_what_was_answered_is_kept(
    target: str, server: Any, servicer: Servicer, pictures: Path, report: Path
) -> None:
    servicer.on_call = lambda call: server.stop(None) and None if call == 4 else None
    result = evaluate(target, pictures, report, "--concurrency", 1)
    assert result.exit_code == 1
    assert "run the same command again to continue" in result.stderr
    assert len(journal_of(report).read_text().splitlines()) >= 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify", "/nowhere"], "no such folder"),
        (["classify", "SET", "--model", "other"], "did you mean toy?"),
        (["segment", "SET"], "serves no default model for segment"),
        (["detect", "SET", "--model", "toy"], "toy is a model for classify, not for detect"),
        (["classify", "SET", "--layout", "coco"], "no truth for classify"),
        (["classify", "SET", "--server", "127.0.0.1:1"], "mobilevision serve"),
        (["classify", "SET", "--out", "/proc/nowhere/report.json"], "--out"),
    ],
)
def test_an_impossible_evaluation_is_one_line(target: str, pictures: Path, arguments: list[str], message: str) -> None:
    filled = [str(pictures) if argument == "SET" else argument for argument in arguments]
    server = [] if "--server" in filled else ["--server", target]
    result = invoke(*filled, *server)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_labels_that_are_not_those_of_the_set(target: str, servicer: Servicer, pictures: Path) -> None:
    servicer.labels = ("cat", "dog")
    result = invoke("classify", pictures, "--server", target)
    assert "no label for: bright, dark, gray; the model's 2 labels are cat, dog" in result.stderr


# Through a whole gateway


async def test_classification_through_a_gateway(pictures: Path, report: Path) -> None:
    result = await through_gateway(Task.CLASSIFY, pictures, report, published={"top1": 50.0})
    assert result.exit_code == 0, result.output
    assert "the published scores are for other data" in result.stdout
    assert "weights: random" in result.stdout
    assert json.loads(report.read_text())["scores"]["top1"] == 75.0


async def test_detection_through_a_gateway(tmp_path: Path, report: Path) -> None:
    box = [16.0, 12.0, 32.0, 12.0]  # what the toy detector answers for a picture of 64 x 48
    rows = [(0, [(0, box)]), (1, [(1, box)]), (2, [(1, box)])]  # the third looks bright, and is gray
    result = await through_gateway(
        Task.DETECT, eval_sets.coco(tmp_path / "set", rows), report, published={"map": 100.0}
    )
    assert result.exit_code == 0, result.output
    content = json.loads(report.read_text())
    # dark is all found; of gray one of two: precision 1 up to recall 0.5, 51 of 101 points; bright does not occur.
    assert content["per_class"] == {"dark": pytest.approx(100.0), "gray": pytest.approx(100 * 51 / 101)}
    assert content["scores"]["map"] == pytest.approx((100 + 100 * 51 / 101) / 2)


async def test_segmentation_through_a_gateway(tmp_path: Path, report: Path) -> None:
    folder = tmp_path / "set"
    half = np.zeros((eval_sets.HEIGHT, 1), np.uint8)
    half[:12] = 1  # a quarter of the picture is gray in truth
    half[12:24] = 255  # and of another one nothing is known
    for name, looks, values in (("a", 0, half), ("b", 2, 2)):
        eval_sets.picture(folder / "images" / f"{name}.jpg", looks)
        eval_sets.mask(folder / "masks" / f"{name}.png", values)
    content = eval_sets.coco_json([[], []], names=["a.jpg", "b.jpg"])
    content["categories"] = [category for category in content["categories"] if category["name"] != "dark"]
    (folder / "detect.json").write_text(json.dumps(content))
    result = await through_gateway(Task.SEGMENT, folder, report, published={"miou": 60.0})
    assert result.exit_code == 0, result.output
    found = json.loads(report.read_text())
    # a is answered dark everywhere: dark 2/3, gray 0; b is right: bright 1.
    assert found["per_class"] == {"dark": pytest.approx(200 / 3), "gray": 0.0, "bright": 100.0}
    assert found["scores"]["miou"] == pytest.approx((200 / 3 + 100) / 3)


async def test_a_picture_the_gateway_refuses(pictures: Path, report: Path) -> None:
    (pictures / "val" / "dark" / "p0.JPEG").write_bytes(b"no picture")
    result = await through_gateway(Task.CLASSIFY, pictures, report, published={})
    assert result.exit_code == 1
    assert json.loads(report.read_text())["failures"]["by_reason"] == {"IMAGE_FORMAT_UNSUPPORTED": 1}
    assert json.loads(report.read_text())["scores"]["top1"] == pytest.approx(100 * 8 / 12)


def test_leaving_early_stops_the_threads(target: str, servicer: Servicer, pictures: Path) -> None:
    with VisionClient(target) as client:
        model = run.find_model(client, "", Task.CLASSIFY)
        dataset = datasets.read(pictures, task=Task.CLASSIFY, labels=model.labels)
        outcomes = run.evaluate(client, model, dataset, dataset.samples, concurrency=1)
        next(outcomes)
        outcomes.close()
        assert servicer.calls < 12
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("eval")]
        servicer.refuse = lambda _: errors.ShuttingDown("bye")
        with pytest.raises(ServerFailed):
            list(run.evaluate(client, model, dataset, dataset.samples, concurrency=2))
