"""Turns what libraries write past `logging` into log records, so that each line of the log has the log's format.

gRPC's core writes to file descriptor 2, and its lines hold bytes that clients sent (the debug text of a GOAWAY frame).
In: that descriptor, warnings, and exceptions that no thread handles. Out: log records. Never changes what Python code
prints to `sys.stderr`, and does nothing on a terminal.
"""

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator

STDERR = 2
LONGEST_LINE_BYTES = 8192  # longer lines are logged in parts

_log = logging.getLogger("stderr")


@contextlib.contextmanager
def logged() -> Iterator[None]:
    """Log foreign output while the block runs. Use it in a process that starts no children with this standard error.

    Lines are dropped while the pipe is full: gRPC's threads must never wait for the log. Lines that a library writes in
    the instant before it aborts the process may be lost.
    """
    if sys.stderr.isatty():
        yield
        return
    before, thread_hook, unraisable_hook = sys.stderr, threading.excepthook, sys.unraisablehook
    before.flush()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    original = os.dup(STDERR)
    own = open(original, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115 - closed below
    os.dup2(writing, STDERR)
    os.close(writing)
    sys.stderr = own
    _move_handlers(before, own)
    threading.excepthook = _log_thread_exception
    sys.unraisablehook = _log_unraisable
    logging.captureWarnings(True)
    reader = threading.Thread(target=_log_lines, args=(reading,), name="foreign output", daemon=True)
    reader.start()
    try:
        yield
    finally:
        os.dup2(original, STDERR)  # closes the pipe, so the reader ends
        reader.join(1.0)
        logging.captureWarnings(False)
        threading.excepthook, sys.unraisablehook = thread_hook, unraisable_hook
        _move_handlers(own, before)
        sys.stderr = before
        own.close()
        os.close(original)


def _move_handlers(before: object, after: object) -> None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is before:
            handler.setStream(after)


def _log_lines(reading: int) -> None:
    rest = b""
    while chunk := os.read(reading, LONGEST_LINE_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > LONGEST_LINE_BYTES:
            lines, rest = [*lines, rest], b""
        for line in lines:
            _log_line(line)
    _log_line(rest)
    os.close(reading)


def _log_line(line: bytes) -> None:
    if line.strip():
        # gRPC's core begins its lines with I, W, E or F. Other lines have no level.
        level = logging.INFO if line[:1] == b"I" and line[1:5].isdigit() else logging.WARNING
        _log.log(level, "%s", line.decode(errors="backslashreplace"))


def _log_thread_exception(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        _log.error("a thread ended with an exception", exc_info=args.exc_value)


def _log_unraisable(args: "sys.UnraisableHookArgs") -> None:
    _log.error("%s: %r", args.err_msg or "an exception was ignored", args.object, exc_info=args.exc_value)
