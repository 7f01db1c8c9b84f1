"""The fuzz targets, in short: every hostile input made by code, and mutations with a fixed seed, raise what they may.

Each finding of the suite so far is among the inputs made by code: frames with odd headers, checkpoints of odd tensors.
"""

import itertools
import random
from pathlib import Path

import pytest

from benchmarks.hold.fuzz import targets
from benchmarks.hold.fuzz.child import Trier
from benchmarks.hold.fuzz.journal import Journal
from benchmarks.hold.fuzz.mutation import mutated
from benchmarks.hold.fuzz.target import Target

MUTATIONS = 300
SHORT = ("frame", "worker_protocol", "shm_layout", "card", "rollout")


def try_all(name: str, *, mutations: int, step: int = 1) -> tuple[int, int]:
    """Run a target on its seeds, every `step`th, and on mutations. Returns how many were read, and how many refused."""
    target = targets.TARGETS[name]
    run, expected = target.prepare(), target.expected()
    seeds = list(itertools.islice(target.seeds(), 0, None, step))
    short = [content for content in seeds if len(content) < 2**14]
    draw = random.Random(0)
    more = (mutated(draw.choice(short), draw.choice(short), draw, target.longest_bytes) for _ in range(mutations))
    read = refused = 0
    for content in itertools.chain(seeds, more):
        try:
            run(content)
            read += 1
        except expected:
            refused += 1
    return read, refused


@pytest.mark.parametrize("name", SHORT)
def test_a_parser_raises_only_what_it_documents(name: str) -> None:
    read, refused = try_all(name, mutations=MUTATIONS)
    assert read > 0
    assert refused > MUTATIONS // 4


def test_decoding_raises_only_errors_of_pictures() -> None:
    read, refused = try_all("decode", mutations=MUTATIONS, step=37)
    assert read > 20
    assert refused > 100


def test_masks_are_encoded_wherever_the_map_lies() -> None:
    read, refused = try_all("masks", mutations=20)
    assert read > 20
    assert refused == 0


def test_no_checkpoint_runs_code_or_breaks_the_reader() -> None:
    read, refused = try_all("checkpoint", mutations=30)
    assert read >= 5
    assert refused > 100


def test_mutation_is_the_same_for_the_same_seed() -> None:
    content, other = b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(range(200))
    first, second = ([mutated(content, other, random.Random(number), 500) for number in range(50)] for _ in range(2))
    assert first == second
    assert len(set(first)) > 30
    assert max(map(len, first)) <= 500


def test_a_crash_and_a_refusal_are_counted_apart(tmp_path: Path) -> None:
    def run(content: bytes) -> None:
        if content:
            raise ValueError if content == b"a" else KeyError(content)

    target = Target("toy", lambda: run, lambda: iter(()), lambda: (ValueError,), 0, ())
    journal = Journal(tmp_path / "journal", 100, create=True)
    trier = Trier(target, run, tmp_path, journal)
    for content in (b"", b"a", b"b", b"b"):
        trier.try_(content)
    assert trier.refused == 1
    assert len(trier.crashes) == 1  # the same place counts once
    assert [path.read_bytes() for path in (tmp_path / "crashes").iterdir() if not path.suffix] == [b"b"]
    assert Journal(tmp_path / "journal", 100, create=False).read()[0] == 4
