"""A line against a sorted list."""

from hypothesis import given
from hypothesis import strategies as st

from service.line import Line


@given(st.lists(st.tuples(st.sampled_from(["add", "discard", "take"]), st.integers(0, 9)), max_size=60))
def test_a_line_is_sorted_by_deadline_and_then_by_arrival(steps: list[tuple[str, int]]) -> None:
    line: Line[list[int]] = Line()
    model: list[tuple[int, list[int]]] = []
    for number, (action, value) in enumerate(steps):
        if action == "add":
            item = [number]  # told apart by identity, as entries are
            line.add(value, item)
            model = sorted([*model, (value, item)], key=lambda pair: pair[0])
        elif action == "discard" and model:
            deadline, item = model.pop(value % len(model))
            line.discard(deadline, item)
            line.discard(deadline, item)  # gone already: nothing happens
        elif action == "take":
            stop = min(value, len(model))
            assert line.take(stop // 2, stop) == [item for _, item in model[stop // 2 : stop]]
            del model[stop // 2 : stop]
        assert line.deadlines == [deadline for deadline, _ in model]
        assert all(a is b for a, (_, b) in zip(line.items, model, strict=True))


def test_trying_leaves_the_line_as_it_was() -> None:
    line: Line[str] = Line()
    for deadline in (1.0, 2.0, 2.0, 3.0):
        line.add(deadline, "x")
    with line.trying(2.0) as place:
        assert place == 3
        assert line.deadlines == [1.0, 2.0, 2.0, 2.0, 3.0]
    assert line.deadlines == [1.0, 2.0, 2.0, 3.0]
    assert len(line.clear()) == 4
    assert line.deadlines == []
