import os
import threading

import pytest

from handlers import compiled_cache
from handlers.compiled_cache import CompiledCache


def never():
    raise AssertionError("built again")


def kept_files(folder):
    return sorted(path for path in folder.glob("compiled-*") if not path.suffix)


def test_what_was_built_is_read_by_the_next(tmp_path):
    first, second = CompiledCache(tmp_path, ("a", "1")), CompiledCache(tmp_path, ("a", "1"))
    assert first.get(lambda: b"content", bytes) == b"content"
    assert second.get(never, bytes) == b"content"
    assert (first.hit, second.hit) == (False, True)


def test_another_key_is_another_file(tmp_path):
    CompiledCache(tmp_path, ("a", "1")).get(lambda: b"one", bytes)
    assert CompiledCache(tmp_path, ("a", "2")).get(lambda: b"two", bytes) == b"two"
    assert len(kept_files(tmp_path)) == 2


@pytest.mark.parametrize("damage", [b"", b"short", b"\0" * 100])
def test_a_damaged_file_is_built_again(tmp_path, damage):
    CompiledCache(tmp_path, ("a",)).get(lambda: b"content", bytes)
    (path,) = kept_files(tmp_path)
    path.write_bytes(damage)
    assert CompiledCache(tmp_path, ("a",)).get(lambda: b"new", bytes) == b"new"
    assert CompiledCache(tmp_path, ("a",)).get(never, bytes) == b"new"


def test_a_file_that_the_engine_cannot_read_is_built_again(tmp_path):
    CompiledCache(tmp_path, ("a",)).get(lambda: b"old", bytes)

    def read(content):
        if content == b"old":
            raise RuntimeError("from another version")
        return content

    assert CompiledCache(tmp_path, ("a",)).get(lambda: b"new", read) == b"new"
    assert CompiledCache(tmp_path, ("a",)).get(never, read) == b"new"


def test_nothing_is_kept_without_a_folder_or_in_one_that_is_gone(tmp_path):
    assert CompiledCache(None, ("a",)).get(lambda: b"content", bytes) == b"content"
    assert CompiledCache(tmp_path / "gone", ("a",)).get(lambda: b"content", bytes) == b"content"
    assert list(tmp_path.iterdir()) == []


def test_what_building_raises_is_passed_on_and_leaves_nothing(tmp_path):
    def build():
        raise ValueError("does not compile")

    with pytest.raises(ValueError, match="does not compile"):
        CompiledCache(tmp_path, ("a",)).get(build, bytes)
    assert kept_files(tmp_path) == []


def test_workers_that_start_at_once_compile_once(tmp_path):
    building, go_on, builds, results = threading.Event(), threading.Event(), [], []

    def build():
        builds.append(1)
        building.set()
        assert go_on.wait(60)
        return b"content"

    def wait(seconds):
        go_on.set()  # the second worker waits, so the first may finish
        threading.Event().wait(seconds)

    first = threading.Thread(target=lambda: results.append(CompiledCache(tmp_path, ("a",)).get(build, bytes)))
    first.start()
    assert building.wait(60)
    results.append(CompiledCache(tmp_path, ("a",), sleep=wait).get(build, bytes))
    first.join(60)
    assert results == [b"content"] * 2
    assert len(builds) == 1


def test_a_worker_that_holds_the_lock_for_too_long_holds_nobody_up(tmp_path):
    now = [0.0]
    slow = CompiledCache(tmp_path, ("a",))
    late = CompiledCache(
        tmp_path, ("a",), clock=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds)
    )
    assert slow.get(lambda: late.get(lambda: b"content", bytes), bytes) == b"content"
    assert now[0] >= compiled_cache.LONGEST_WAIT_SECONDS


@pytest.mark.parametrize(("files", "size", "left"), [(3, 10**6, 3), (8, 25, 5)])
def test_the_oldest_files_are_removed(tmp_path, monkeypatch, files, size, left):
    monkeypatch.setattr(compiled_cache, "MOST_FILES", files)
    monkeypatch.setattr(compiled_cache, "MOST_BYTES", size * (32 + 3) if size > 100 else 4 * (32 + 3))
    for number in range(6):
        CompiledCache(tmp_path, (str(number),)).get(lambda: b"abc", bytes)
        os.utime(max(kept_files(tmp_path), key=lambda path: path.stat().st_mtime_ns), (number, number))
    assert len(kept_files(tmp_path)) == left
    assert CompiledCache(tmp_path, ("5",)).get(never, bytes) == b"abc"
