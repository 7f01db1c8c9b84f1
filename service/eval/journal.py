"""The journal: every answered picture as one line of JSON, so that an interrupted run goes on where it stopped.

    {"identity": {...}}                      first line: of which model, version and data set the answers are
    {"key": ..., "top" | "boxes" | "pixels": ...}     one per picture, as `answers.Outcome.to_json`

Lines are appended whole. A last line that is cut off (power, kill -9) is dropped; anything else that is wrong is
an error. Pictures that failed are written down and asked again by the next run.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from service.eval.answers import Outcome
from service.eval.errors import JournalMismatch, OutputFailed


class Journal:
    """An open journal. `answered` holds what earlier runs left, by key."""

    def __init__(self, path: Path, answered: Mapping[str, Outcome], file: IO[bytes]) -> None:
        self.path = path
        self.answered = answered
        self._file = file

    @classmethod
    def open(cls, path: Path, identity: Mapping[str, str], *, fresh: bool) -> "Journal":
        """Go on with the journal at `path`, or begin one; `fresh` begins one in any case.

        Raises `JournalMismatch` where its identity is another, `OutputFailed` where it cannot be read or written.
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
            raise OutputFailed(f"cannot use {path}: {error.strerror}; name another place with --out") from error
        return journal

    def append(self, outcome: Outcome) -> None:
        """Write one picture down; it is in the hands of the operating system when this returns."""
        try:
            self._write(outcome.to_json())
        except OSError as error:
            raise OutputFailed(f"cannot write {self.path}: {error.strerror}; make room and run again") from error

    def close(self) -> None:
        """Keep the journal for the next run."""
        self._file.close()

    def discard(self) -> None:
        """The run is complete: the journal has served."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _write(self, plain: dict[str, Any]) -> None:
        self._file.write(json.dumps(plain, separators=(",", ":")).encode() + b"\n")
        self._file.flush()


def _parse(path: Path, whole: bytes, identity: Mapping[str, str]) -> dict[str, Outcome]:
    try:
        first, *lines = [json.loads(line) for line in whole.splitlines()]
        theirs: dict[str, str] = dict(first["identity"])
        outcomes = [Outcome.from_json(line) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise OutputFailed(f"{path} is damaged ({error}); begin anew with --fresh") from error
    changed = [
        f"{name} was {theirs.get(name, 'not stated')!r}, is {identity.get(name, 'not stated')!r}"
        for name in sorted({*theirs, *identity})
        if theirs.get(name) != identity.get(name)
    ]
    if changed:
        raise JournalMismatch(
            f"{path} is of an interrupted run on something else: {'; '.join(changed)}; "
            "begin anew with --fresh, or name another report with --out"
        )
    return {outcome.key: outcome for outcome in outcomes if not outcome.reason}
