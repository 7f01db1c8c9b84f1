import json
import logging
import sys

from service.core.logs import JsonFormatter, TextFormatter


def record(**extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "service.access", "levelno": 20, "levelname": "INFO", "msg": "Classify OK"})
    vars(made).update(extra)
    return made


def test_a_json_line_has_the_standard_fields_and_the_extra_fields() -> None:
    line = json.loads(JsonFormatter().format(record(request_id="r1", reason=None, stage_seconds={"decode": 0.1})))
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "service.access",
        "message": "Classify OK",
        "request_id": "r1",
        "stage_seconds": {"decode": 0.1},
    }


def test_a_message_cannot_forge_a_second_line() -> None:
    line = JsonFormatter().format(record(error='x\n{"level": "info"}'))
    assert len(line.splitlines()) == 1


def test_a_traceback_is_kept() -> None:
    try:
        {}["lost"]
    except KeyError:
        line = json.loads(JsonFormatter().format(record(exc_info=sys.exc_info())))
    assert "KeyError: 'lost'" in line["traceback"]


def test_text_shows_duration_and_error() -> None:
    text = TextFormatter().format(
        record(duration_seconds=0.0123, model="m", error="no such model", reason="MODEL_NOT_FOUND")
    )
    assert text.endswith("info    Classify OK m 12.3 ms (MODEL_NOT_FOUND: no such model)")


def test_lines_of_one_of_several_gateway_processes_show_its_number() -> None:
    assert json.loads(JsonFormatter(0).format(record()))["gateway_process"] == 0
    assert TextFormatter(1).format(record()).endswith("info    [1] Classify OK")
