"""The format of log lines: one JSON object each for machines, short text for a terminal.

In: log records. Out: lines on standard error. Never decides what is logged.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_encode = json.JSONEncoder(default=str).encode  # `json.dumps` would make an encoder for every line


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (RFC 3339, UTC), level, logger, message, and the fields given as `extra`.

    `process` is the number of this gateway process, None if it is the only one.
    """

    def __init__(self, process: int | None = None) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return one record as JSON."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._process is not None:
            line["gateway_process"] = self._process
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD and value is not None}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return _encode(line)


class TextFormatter(logging.Formatter):
    """Short text, control characters escaped: `12:34:56 info    [1] Classify OK model 4.2 ms (REASON: error message)`.

    The number in brackets is `process`; it is missing if this is the only gateway process.
    """

    def __init__(self, process: int | None = None) -> None:
        super().__init__()
        self._prefix = "" if process is None else f"[{process}] "

    def format(self, record: logging.LogRecord) -> str:
        """Return one record as text."""
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        text = f"{clock} {record.levelname.lower():7} {self._prefix}{_escaped(record.getMessage())}"
        duration = getattr(record, "duration_seconds", None)
        if duration is not None:
            text += f" {getattr(record, 'model', '')} {duration * 1e3:.1f} ms"
        error = getattr(record, "error", None)
        if error:
            text += f" ({record.__dict__['reason']}: {_escaped(str(error))})"
        if record.exc_info:
            # Indented: no line of an exception's text can look like a log line.
            text += "".join(f"\n    {_escaped(line)}" for line in self.formatException(record.exc_info).splitlines())
        return text


def configure(*, level: str, log_format: Literal["auto", "json", "text"], process: int | None = None) -> None:
    """Send all log lines of this process to standard error.

    `log_format` auto is text on a terminal and JSON elsewhere. `process` is the number of this gateway process, None if
    it is the only one.
    """
    if log_format == "auto":
        log_format = "text" if sys.stderr.isatty() else "json"
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(process) if log_format == "json" else TextFormatter(process))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # No line says where in the code or in which thread it was made. Finding that out takes time at every line:
    # https://docs.python.org/3/howto/logging.html#optimization
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # Pillow logs the metadata of pictures. What is wrong with a picture is in the error that its caller gets.
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_not_about_callers)


def _not_about_callers(record: logging.LogRecord) -> bool:
    """Return False for the tracebacks that gRPC logs for what callers do.

    That is a value of the metadata that is not UTF-8, which is then read as Latin-1, or hanging up during a call.
    """
    return not str(record.msg).startswith(("Invalid encoding", "ExecuteBatchError raised"))


def _escaped(text: str) -> str:
    """Return the text with escapes for control characters: line feeds forge lines, escape sequences drive terminals."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
