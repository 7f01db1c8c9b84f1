"""Pages are made of the result files: figures, engines and accuracy stand where they belong."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import pages, report, serving_report
from benchmarks.machine import describe
from benchmarks.pairs import REFERENCE, Pair
from benchmarks.results import Head, Participant, write
from benchmarks.serving_record import ServingRecord
from benchmarks.serving_results import LimitPair, LimitTurn, Turn

FASTEST = Pair("openvino", "bfloat16")
MACHINE = dataclasses.replace(describe(), cores=2, cpu_flags=())


def head(benchmark: str = "serving", **changes: Any) -> Head:
    return Head(benchmark, MACHINE, {"models": "['toy_classify']"}, complete=True, **changes)


def turn(system: str, per_second: float) -> Turn:
    return Turn(
        1, system, "toy_classify", 32, 9, 0, per_second, 1.0, 2.0, 3.0, 0.1, 100.0, 200.0, limit_per_second=200.0
    )


def limit_turn(pair: Pair, per_second: float) -> LimitTurn:
    return LimitTurn(1, 32, "toy_classify", "2x1", 8, per_second, 10.0, pair.engine, pair.dtype)


def record() -> ServingRecord:
    """One round: TorchScript 100/s, the limit 200/s, ours 180/s, mosec 190/s."""
    measured = ServingRecord(head(), "h2load")
    measured.limit_turns += [
        limit_turn(REFERENCE, 100.0),
        limit_turn(FASTEST, 200.0),
        limit_turn(FASTEST, 200.0),
        limit_turn(REFERENCE, 100.0),
    ]
    measured.turns += [turn("mobilevision", 180.0), turn("mosec", 190.0), turn("torchserve_documented", 50.0)]
    measured.participants += [
        Participant("mobilevision", "toy_classify", engine="openvino", dtype="bfloat16"),
        Participant("mosec", "toy_classify", engine="openvino", dtype="bfloat16"),
        Participant("torchserve_documented", "toy_classify", engine="torchscript", dtype="float32"),
        Participant("bentoml", "toy_classify", error="did not start"),
    ]
    measured.limits += [
        LimitPair("toy_classify", "openvino", "bfloat16", "2x1", 8, 210.0, 0.03, 0.992, admitted=True),
        LimitPair("toy_classify", "torchscript", "float32", "1x2", 16, 105.0, 0.0, None, admitted=True),
    ]
    return measured


@pytest.fixture
def serving(tmp_path: Path) -> Any:
    write(tmp_path / "serving.json", record().result(complete=True))
    return json.loads((tmp_path / "serving.json").read_bytes())


def cells(text: str) -> list[dict[str, str]]:
    """The rows of the first Markdown table in a text."""
    lines = text[text.index("|") :].split("\n\n", 1)[0].splitlines()
    first, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(first, row, strict=True)) for row in rows]


def test_the_headline_is_relative_to_torchscript_with_the_accuracy_beside_it(serving: Any) -> None:
    (row,) = cells(serving_report.headline(serving))
    assert row == {
        "model": "`toy_classify`",
        "TorchScript in process, pictures/s per core": "50",
        "engine of ours": "openvino bfloat16",
        "beside TorchScript": "99.2% same answers, raw outputs within 3e-02",
        "best in process": "2.00",
        "ours": "1.80",
        "mosec": "1.90",
        "TorchServe as documented": "0.50",
    }


def test_a_faster_system_is_named(serving: Any) -> None:
    assert serving_report.ahead(serving).endswith("`toy_classify`: mosec 1.06 times.")
    serving["ratio_to_peer"] = {
        "toy_classify/32": {"mosec": {"median": 1.2}},
        "toy_classify/1": {"mosec": {"median": 0.5}},
    }
    assert serving_report.ahead(serving).endswith("none.")


def test_the_engine_of_every_system_is_named(serving: Any) -> None:
    assert report.computed_by(serving) == (
        "The networks ran in openvino bfloat16 (ours, mosec); torchscript float32 (TorchServe as documented)."
    )


def test_a_system_with_another_engine_for_one_model_is_told_apart(serving: Any) -> None:
    other = {**serving["participants"][0], "model": "toy_detect", "dtype": "float32"}
    mosec = {**serving["participants"][1], "model": "toy_detect"}
    serving["participants"] = [*serving["participants"][:2], other, mosec]
    assert report.computed_by(serving) == (
        "The networks ran in openvino bfloat16 (ours (`toy_classify`), mosec); openvino float32 (ours (`toy_detect`))."
    )


def test_the_candidates_for_the_limit_are_a_table_with_their_accuracy(serving: Any) -> None:
    section = serving_report.serving(serving)
    rows = cells(section[section.index("Every engine and dtype") :])[:2]
    assert [row["/ TorchScript float32"] for row in rows] == ["2.00", "1.00"]
    assert rows[1]["beside TorchScript float32"] == "the reference"
    assert rows[0]["processes x threads, batch"] == "2x1, 8"


@pytest.mark.parametrize(
    ("difference", "agreement", "text"),
    [
        (0.0, None, "the reference"),
        (3e-6, None, "raw outputs within 3e-06"),
        (None, 1.0, "100.0% same answers"),
        (None, None, "not told"),
    ],
)
def test_accuracy_says_what_is_known(difference: float | None, agreement: float | None, text: str) -> None:
    assert report.accuracy(difference, agreement) == text


def of_schema_1(serving: Any) -> Any:
    """The same content as a file of schema 1 would have it, with the limit in TorchScript."""
    new = ("limits", "ratio_to_torchscript", "peer_ratio_to_torchscript", "limit_to_torchscript")
    old = {key: value for key, value in serving.items() if key not in new}
    old["head"] = {**serving["head"], "schema_version": 1}
    for name in ("limit_turns", "participants"):
        old[name] = [{k: v for k, v in one.items() if k not in {"engine", "dtype"}} for one in serving[name]]
    return old


def test_a_file_from_before_the_engines_is_relative_to_its_limit_which_was_torchscript(serving: Any) -> None:
    old = of_schema_1(serving)
    (row,) = cells(serving_report.headline(serving_report.current(old)))
    assert (row["best in process"], row["ours"], row["mosec"]) == ("1.00", "0.90", "0.95")
    assert row["engine of ours"] == "torchscript float32"
    assert "TorchScript, in float32" in report.computed_by(old)


def test_a_file_from_before_the_engines_on_a_cpu_with_amx_says_nothing_of_float32(serving: Any) -> None:
    """There, workers chose bfloat16."""
    old = of_schema_1(serving)
    old["head"]["machine"] = {**old["head"]["machine"], "cpu_flags": ["amx_bf16"]}
    (row,) = cells(serving_report.headline(serving_report.current(old)))
    assert (row["best in process"], row["ours"], row["engine of ours"]) == ("–", "–", "–")
    assert "does not name" in report.computed_by(old)


def test_cores_for_a_billion_pictures(serving: Any) -> None:
    text = serving_report.capacity(serving)
    (row,) = cells(text)
    assert list(row.values()) == ["`toy_classify`", "180", "90", "459", "689"]
    assert "`28,935 / (180.0 x 0.7)` = 230 pods of 2 cores, or 345 pods with one zone lost" in text


def test_a_block_stands_between_its_marks_and_the_rest_stays() -> None:
    text = f"before\n{pages.MARK}\nold\n{pages.MARK}\nafter"
    once = pages.marked(text, "new")
    assert once == f"before\n{pages.MARK}\n\nnew\n\n{pages.MARK}\nafter"
    assert pages.marked(once, "new") == once
    with pytest.raises(ValueError, match="unpack"):
        pages.marked("no marks", "new")


def published(folder: Path) -> Path:
    (folder / "benchmarks" / "measured").mkdir(parents=True)
    (folder / "docs").mkdir()
    return folder


def test_results_are_copied_to_where_they_are_published(tmp_path: Path, serving: Any) -> None:
    root = published(tmp_path / "project")
    (tmp_path / "serving.png").write_bytes(b"plot")
    pages.publish(["serving"], tmp_path, root)
    assert json.loads((root / "benchmarks" / "measured" / "serving.json").read_bytes()) == serving
    assert (root / "docs" / "serving.png").read_bytes() == b"plot"


@pytest.mark.parametrize("complete", [None, False])
def test_a_missing_result_or_one_that_was_cut_short_is_not_published(tmp_path: Path, complete: bool | None) -> None:
    root = published(tmp_path / "project")
    write(tmp_path / "serving.json", record().result(complete=True))
    if complete is False:
        write(tmp_path / "overload.json", record().result(complete=False))
    with pytest.raises(SystemExit, match=r"python -m benchmarks\.overload"):
        pages.publish(["serving", "overload"], tmp_path, root)
    assert not list((root / "benchmarks" / "measured").iterdir()), "all or none"
