"""Log lines: one JSON object each for machines, short text for a terminal."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (RFC 3339, UTC), level, logger, message, and whatever was given as `extra`.

    `process`: the number of this gateway process where there are several.
    """

    def __init__(self, process: int | None = None) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Serialise one record."""
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
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """`12:34:56 info message (request 1f3a...: reason)`, and before the message the `process`, where it is given."""

    def __init__(self, process: int | None = None) -> None:
        super().__init__()
        self._prefix = "" if process is None else f"[{process}] "

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        text = f"{clock} {record.levelname.lower():7} {self._prefix}{record.getMessage()}"
        duration = getattr(record, "duration_seconds", None)
        if duration is not None:
            text += f" {getattr(record, 'model', '')} {duration * 1e3:.1f} ms"
        error = getattr(record, "error", None)
        if error:
            text += f" ({record.__dict__['reason']}: {error})"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def configure(*, level: str, log_format: Literal["auto", "json", "text"], process: int | None = None) -> None:
    """Send every log line of this process to standard error. `auto`: text on a terminal, JSON otherwise.

    `process`: its number where it is one gateway process of several.
    """
    if log_format == "auto":
        log_format = "text" if sys.stderr.isatty() else "json"
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(process) if log_format == "json" else TextFormatter(process))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
