import random

import numpy as np
import pytest
import torch

from handlers.cuda_graphs import graphed_or_eager
from handlers.execution import Bucketed, Direct, bucket_sizes

SIDE = 4


def brightest(pixels):
    return pixels.flatten(1).amax(1).float()


class HostBucket:
    """A bucket as on a GPU: static buffers, outputs that the next run overwrites."""

    def __init__(self, size):
        self.pixels = torch.zeros((size, SIDE, SIDE, 3), dtype=torch.uint8)
        self.results = torch.zeros(size)
        self.runs = 0

    def run(self):
        self.runs += 1
        self.results.copy_(brightest(self.pixels))
        return (self.results,)


class Made(dict):
    """The buckets made, by size, in the order they were made."""

    def __call__(self, size):
        self[size] = HostBucket(size)
        return self[size]


def pictures(*values):
    return np.stack([np.full((SIDE, SIDE, 3), value, np.uint8) for value in values])


@pytest.mark.parametrize(("max_batch", "sizes"), [(1, (1,)), (5, (1, 2, 4, 5)), (8, (1, 2, 4, 8)), (64, None)])
def test_sizes_are_powers_of_two_and_the_largest_batch(max_batch, sizes):
    assert bucket_sizes(max_batch) == (sizes or (1, 2, 4, 8, 16, 32, 64))


@pytest.mark.parametrize("as_rows", [False, True])
def test_a_batch_runs_in_the_smallest_bucket_that_holds_it(as_rows):
    made = Made()
    execution = Bucketed(6, made)
    assert list(made) == [6, 4, 2, 1]  # the largest first, for the memory pool
    for values, size in (((9,), 1), ((1, 2, 3), 4), ((1, 2, 3, 4), 4), ((5, 4, 3, 2, 1), 6), ((7, 8), 2)):
        before = made[size].runs
        batch = pictures(*values)
        (results,) = execution.run(list(batch) if as_rows else batch)
        assert (len(results), made[size].runs) == (size, before + 1)
        np.testing.assert_array_equal(results.numpy()[: len(values)], values)


def test_one_writable_array_is_read_where_it_lies_and_rows_are_gathered_once():
    seen = []

    def module(pixels):
        seen.append(pixels.data_ptr())
        return brightest(pixels)

    execution = Direct(module, max_batch=3, height_px=SIDE, width_px=SIDE)
    batch = pictures(4, 5, 6)
    (results,) = execution.run(batch)
    assert seen.pop() == batch.ctypes.data
    np.testing.assert_array_equal(results, [4, 5, 6])
    for rows in (list(batch), [batch[2]], batch[:, ::-1]):
        (results,) = execution.run(rows)
        np.testing.assert_array_equal(results, [row.max() for row in rows])
    assert len(set(seen)) == 1  # one buffer, kept
    assert seen[0] != batch.ctypes.data


def test_a_size_that_cannot_be_captured_runs_without_a_graph_and_says_why(caplog):
    graphed, eager = Made(), Made()

    def capture(size):
        if size >= 2:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return graphed(size)

    execution = Bucketed(4, graphed_or_eager(capture, eager))
    assert (list(graphed), list(eager)) == ([1], [4, 2])
    np.testing.assert_array_equal(execution.run(pictures(3, 1))[0], [3, 1])
    assert [record.getMessage() for record in caplog.records] == [
        f"no graph for batches of {size}, each kernel is launched by itself: "
        "operation not permitted when stream is capturing"
        for size in (4, 2)
    ]


class Timed:
    """A module that takes as long as it is told for a batch of N, by its own clock."""

    def __init__(self, seconds):
        self.now = 0.0
        self.sizes = []
        self._seconds = seconds

    def __call__(self, pixels):
        self.sizes.append(len(pixels))
        self.now += self._seconds(len(pixels))
        return brightest(pixels), pixels[:, 0, 0]


@pytest.mark.parametrize(
    ("seconds", "micro_batch"),
    [
        (lambda size: size, 2),  # nothing gained by more company
        (lambda size: size + 0.2, 2),  # too little
        (lambda size: size + 5, 16),  # each batch has its fixed cost
        (lambda size: size + 1 if size <= 4 else 1.5 * size, 4),  # more than 4 do not fit the cache
    ],
    ids=["linear", "little", "fixed cost", "cache"],
)
def test_batches_run_in_micro_batches_of_the_size_that_pays(seconds, micro_batch):
    module = Timed(lambda size: seconds(size) / 1000)
    execution = Direct(module, max_batch=16, height_px=SIDE, width_px=SIDE, clock=lambda: module.now)
    execution.calibrate()
    assert execution.micro_batch == micro_batch
    module.sizes.clear()
    values = np.arange(11) * 20
    brightness, corners = execution.run(pictures(*values))
    assert sum(module.sizes) == 11
    assert max(module.sizes) <= micro_batch
    assert max(module.sizes) - min(module.sizes) <= 1
    np.testing.assert_array_equal(brightness.numpy(), values)
    np.testing.assert_array_equal(corners.numpy(), np.stack([values] * 3, axis=1))


def test_a_micro_batch_is_never_larger_than_the_largest_batch():
    execution = Direct(brightest, max_batch=1, height_px=SIDE, width_px=SIDE)
    execution.calibrate()
    assert execution.micro_batch == 1


@pytest.mark.parametrize(("saved", "micro_batch"), [(0.0, 2), (0.12, 4)])
def test_a_noisy_machine_rarely_misleads_the_choice(saved, micro_batch):
    """More than two at once save nothing, or four save an eighth and eight no more."""
    generator = random.Random(5)
    seconds = {2: 0.019, 4: 0.038 * (1 - saved), 8: 0.076 * (1 - saved)}
    chosen = []
    for _ in range(100):
        module = Timed(lambda size: seconds[size] * max(0.5, generator.gauss(1.0, 0.07)))
        execution = Direct(module, max_batch=8, height_px=SIDE, width_px=SIDE, clock=lambda module=module: module.now)
        execution.calibrate()
        chosen.append(execution.micro_batch)
    assert chosen.count(micro_batch) >= 95


def test_where_a_round_takes_all_the_time_the_micro_batch_stays_small():
    seconds = {2: 1.0, 4: 1.5}
    module = Timed(lambda size: seconds[size])
    execution = Direct(module, max_batch=4, height_px=SIDE, width_px=SIDE, clock=lambda: module.now)
    execution.calibrate()
    assert execution.micro_batch == 2
