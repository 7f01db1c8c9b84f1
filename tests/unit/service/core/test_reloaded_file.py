from pathlib import Path

import pytest

from service.core.reloaded_file import ReloadedFile


class Loading:
    """A number in a file; a missing file is an error."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "number"
        self.loads = 0
        self.file = ReloadedFile(self.path, load=self.load)

    def load(self) -> int:
        self.loads += 1
        return int(self.path.read_text())

    def replace(self, text: str) -> None:
        """As a careful writer does."""
        new = self.path.with_name("new")
        new.write_text(text)
        new.replace(self.path)


@pytest.fixture
def loading(tmp_path: Path) -> Loading:
    return Loading(tmp_path)


def test_a_file_is_loaded_once_while_it_stays_the_same(loading: Loading) -> None:
    loading.path.write_text("1")
    assert loading.file.changed
    assert [loading.file.value() for _ in range(3)] == [1, 1, 1]
    assert loading.loads == 1
    assert not loading.file.changed


def test_a_changed_file_is_loaded_again(loading: Loading) -> None:
    loading.path.write_text("1")
    loading.file.value()
    loading.replace("2")
    assert loading.file.changed
    assert loading.file.value() == 2
    loading.path.write_text("33")  # in place
    assert loading.file.value() == 33


def test_after_an_error_the_last_good_value_stays_and_the_next_call_tries_again(loading: Loading) -> None:
    assert loading.file.last is None
    with pytest.raises(FileNotFoundError):
        loading.file.value()
    loading.path.write_text("1")
    loading.file.value()
    loading.replace("not a number")
    for _ in range(2):
        with pytest.raises(ValueError, match="not a number"):
            loading.file.value()
        assert loading.file.last == 1
    assert loading.file.changed
    assert loading.loads == 4
    loading.replace("2")
    assert (loading.file.value(), loading.file.last) == (2, 2)


def test_a_file_that_goes_away_is_a_change(loading: Loading) -> None:
    loading.path.write_text("1")
    loading.file.value()
    loading.path.unlink()
    with pytest.raises(FileNotFoundError):
        loading.file.value()
    assert loading.file.last == 1


def test_load_may_accept_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "maybe"
    file = ReloadedFile(path, load=lambda: path.read_text() if path.exists() else "none")
    assert file.value() == "none"
    assert not file.changed
    path.write_text("some")
    assert file.value() == "some"


def test_a_change_of_any_file_loads_all(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("a")
    second.write_text("b")
    file = ReloadedFile(first, second, load=lambda: first.read_text() + second.read_text())
    assert file.value() == "ab"
    second.write_text("cc")
    assert file.value() == "acc"
