"""The journal of an evaluation: cut off, damaged, or of another run."""

import json
from pathlib import Path

import pytest

from mobilevision.eval.answers import Outcome, Top
from mobilevision.eval.errors import JournalMismatch, OutputFailed
from mobilevision.eval.journal import Journal

IDENTITY = {"model": "m"}


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal.open(path, IDENTITY, fresh=False)
    journal.append(Outcome("a", Top((1,))))
    journal.append(Outcome("b", Top((2,))))
    journal.close()
    path.write_bytes(path.read_bytes()[:-5])
    journal = Journal.open(path, IDENTITY, fresh=False)
    assert set(journal.answered) == {"a"}
    journal.append(Outcome("c", Top((3,))))
    journal.close()
    again = Journal.open(path, IDENTITY, fresh=False)
    assert set(again.answered) == {"a", "c"}
    again.discard()
    assert not path.exists()


def test_a_first_line_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(b'{"identi')
    Journal.open(tmp_path / "journal", IDENTITY, fresh=False).close()
    assert json.loads((tmp_path / "journal").read_text()) == {"identity": IDENTITY}


@pytest.mark.parametrize("content", [b"no json\n", b"[]\n", b'{"identity": {"model": "m"}}\n{"key": "a"}\n'])
def test_a_damaged_journal_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "journal").write_bytes(content)
    with pytest.raises(OutputFailed, match="--fresh"):
        Journal.open(tmp_path / "journal", IDENTITY, fresh=False)


def test_a_journal_of_another_identity(tmp_path: Path) -> None:
    Journal.open(tmp_path / "journal", IDENTITY, fresh=False).close()
    with pytest.raises(JournalMismatch, match="model was 'm', is 'n'"):
        Journal.open(tmp_path / "journal", {"model": "n"}, fresh=False)
    Journal.open(tmp_path / "journal", {"model": "n"}, fresh=True).close()
