"""The rules for source files see what they are for, and nothing else."""

from pathlib import Path
from textwrap import dedent

import pytest
import source_tree


def parsed(text: str) -> source_tree.Source:
    return source_tree.parse(Path("service/some.py"), dedent(text))


def names(violations: list[str]) -> list[str]:
    """What is violated, without the path: `line: words`."""
    return [violation.removeprefix("service/some.py:") for violation in violations]


def test_a_missing_docstring_is_seen_at_every_level() -> None:
    source = parsed(
        """\
        class Open:
            def method(self): ...
            def _own(self): ...
        def function(): ...
        class _Hidden:
            def method(self): ...
        """
    )
    assert sorted(names(source_tree.without_docstring(source))) == [
        "1: Open has no docstring",
        "1: the module has no docstring",
        "2: Open.method has no docstring",
        "4: function has no docstring",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "pixels [N, H, W, 3]",
        "logits (B, C)",
        "boxes [n, 4]",
        "one [N]",
        "[rows, columns]",
        "of any shape",
        "uint8 (height, width)",
        "uint8 [bytes]",
        "(N, H*W, C)",
    ],
)
def test_a_shape_is_recognised(text: str) -> None:
    assert source_tree.names_shape(text)


@pytest.mark.parametrize("text", ["", "the picture", "pixels (see above)", "files (JPEG, or PNG)", "a `list[str]`"])
def test_words_in_brackets_are_no_shape(text: str) -> None:
    assert not source_tree.names_shape(text)


def test_a_function_with_arrays_names_a_shape() -> None:
    other = source_tree.parse(Path("handlers/frame.py"), "Array = np.ndarray[Any, Any]\nTable = dict[str, Array]\n")
    source = parsed(
        '''\
        from handlers.frame import Array
        def bad(x: torch.Tensor) -> None:
            """Take x."""
        def alias(x) -> list[Array]:
            """Take x."""
        def good(x: torch.Tensor) -> None:
            """Take x [N, 4]."""
        def named(x: dict[str, Array], f: Callable[[Array], int]) -> None:
            """Take weights and a function."""
        class Known:
            """Works on x [N, 4]."""
            def method(self, x: Array) -> None:
                """Take x."""
        '''
    )
    aliases = source_tree.array_aliases([source, other])
    assert aliases == {"handlers.frame": {"Array"}}
    assert [each.partition(" names")[0] for each in names(source_tree.without_shape(source, aliases, {}))] == [
        "2: bad",
        "4: alias",
    ]


def test_an_error_that_leaves_a_function_is_named() -> None:
    source = parsed(
        '''\
        class Base(Exception):
            """Any."""
        class Small(Base):
            """One."""
        def bad():
            """Do."""
            if True:
                raise module.Small("no")
        def good():
            """Do. Raises `Small`."""
            raise Small
        def caught():
            """Do."""
            try:
                raise Small("no")
            except (Base, OSError):
                return
        def in_the_handler():
            """Do."""
            try:
                pass
            except Small:
                raise Base from None
        def again():
            """Do."""
            try:
                pass
            except Small as error:
                raise
                raise error
        def bug():
            """Do."""
            raise RuntimeError("this is a bug")
        def later():
            """Do."""
            def inner():
                raise Small
        def _own():
            raise Small
        '''
    )
    violations = source_tree.unnamed_errors(source, source_tree.error_bases([source]), {})
    assert [each.partition(", and")[0] for each in names(violations)] == [
        "8: bad raises Small",
        "23: in_the_handler raises Base",
    ]


def test_a_reference_stands_for_the_text_it_names() -> None:
    source = parsed(
        '''\
        class Seam:
            def run(self, x):
                """Run x [N, 4]. Raises `Small`."""
        class Real:
            def run(self, x: Tensor):
                """See `service.some.Seam.run`."""
                raise Small
        '''
    )
    known = source_tree.references([source])
    assert source_tree.without_shape(source, {}, known) == source_tree.unnamed_errors(source, {}, known) == []
    assert len(source_tree.without_shape(source, {}, {})) == len(source_tree.unnamed_errors(source, {}, {})) == 1
