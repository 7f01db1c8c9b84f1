"""The deadline queue against a sorted list."""

from hypothesis import given
from hypothesis import strategies as st

from service.batching.deadline_queue import DeadlineQueue


@given(st.lists(st.tuples(st.sampled_from(["add", "discard", "take"]), st.integers(0, 9)), max_size=60))
def test_a_queue_is_sorted_by_deadline_and_then_by_arrival(steps: list[tuple[str, int]]) -> None:
    queue: DeadlineQueue[list[int]] = DeadlineQueue()
    model: list[tuple[int, list[int]]] = []
    for number, (action, value) in enumerate(steps):
        if action == "add":
            item = [number]  # told apart by identity, as entries are
            queue.add(value, item)
            model = sorted([*model, (value, item)], key=lambda pair: pair[0])
        elif action == "discard" and model:
            deadline, item = model.pop(value % len(model))
            queue.discard(deadline, item)
            queue.discard(deadline, item)  # gone already: nothing happens
        elif action == "take":
            stop = min(value, len(model))
            assert queue.take(range(stop // 2, stop)) == [item for _, item in model[stop // 2 : stop]]
            del model[stop // 2 : stop]
        assert queue.deadlines == [deadline for deadline, _ in model]
        assert all(a is b for a, (_, b) in zip(queue.items, model, strict=True))


def test_clear_removes_and_returns_all_items() -> None:
    queue: DeadlineQueue[str] = DeadlineQueue()
    for deadline in (1.0, 2.0, 2.0, 3.0):
        queue.add(deadline, "x")
    assert len(queue.clear()) == 4
    assert queue.deadlines == []
    assert queue.items == []
