"""The journal: every answered picture as one line of JSON, so that an interrupted run can continue.

    {"identity": {...}}                               first line: the model, its version and the data set
    {"key": ..., "top" | "boxes" | "pixels": ...}     one line per picture, see `answers.Outcome.to_json`

Lines are appended whole. An incomplete last line (power failure, kill -9) is dropped. Any other damage is an error.
Failed pictures are written too, and the next run sends them again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from mobilevision.eval.answers import Outcome
from mobilevision.eval.errors import JournalMismatch, OutputFailed


class Journal:
    """An open journal. `answered` holds the outcomes of earlier runs, by key of the picture."""

    def __init__(self, path: Path, answered: Mapping[str, Outcome], file: IO[bytes]) -> None:
        self.path = path
        self.answered = answered
        self._file = file

    @classmethod
    def open(cls, path: Path, identity: Mapping[str, str], *, fresh: bool) -> "Journal":
        """Continue the journal at `path`, or start one. With `fresh` an old journal is overwritten.

        Raises `JournalMismatch` where the old journal has another identity, and `OutputFailed` where the file cannot be
        read or written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = b"" if fresh or not path.exists() else path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            answered = _parse(path, whole, identity) if whole else {}
            file = path.open("r+b" if whole else "wb")
            file.truncate(len(whole))
            file.seek(len(whole))
            journal = cls(path, answered, file)
            if not whole:
                journal._write({"identity": dict(identity)})
        except OSError as error:
            raise OutputFailed(f"cannot use {path}: {error.strerror}; name another file with --out") from error
        return journal

    def append(self, outcome: Outcome) -> None:
        """Write one outcome and flush it to the operating system. Raises `OutputFailed`."""
        try:
            self._write(outcome.to_json())
        except OSError as error:
            raise OutputFailed(
                f"cannot write {self.path}: {error.strerror}; free some space and run the same command again"
            ) from error

    def close(self) -> None:
        """Keep the journal for the next run."""
        self._file.close()

    def discard(self) -> None:
        """Delete the journal, after a complete run."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _write(self, plain: dict[str, Any]) -> None:
        self._file.write(json.dumps(plain, separators=(",", ":")).encode() + b"\n")
        self._file.flush()


def _parse(path: Path, whole: bytes, identity: Mapping[str, str]) -> dict[str, Outcome]:
    try:
        first, *lines = [json.loads(line) for line in whole.splitlines()]
        old: dict[str, str] = dict(first["identity"])
        outcomes = [Outcome.from_json(line) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise OutputFailed(f"{path} is damaged ({error}); start again with --fresh") from error
    changed = [
        f"{name} was {old.get(name, 'not stated')!r}, is {identity.get(name, 'not stated')!r}"
        for name in sorted({*old, *identity})
        if old.get(name) != identity.get(name)
    ]
    if changed:
        raise JournalMismatch(
            f"{path} belongs to an interrupted run with another model or data set: {'; '.join(changed)}; "
            "start again with --fresh, or name another report with --out"
        )
    return {outcome.key: outcome for outcome in outcomes if not outcome.reason}
