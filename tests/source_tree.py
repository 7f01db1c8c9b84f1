"""The rules for source files, as functions from a file to its violations.

In: a file's path relative to the repository and its text. Out: violations, each `path:line: what is wrong`. The rules
read syntax trees only. They never import the file.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("service", "handlers", "model_store", "mobilevision")
GENERATED = Path("service/pb")

ARRAY_TYPES = {"Tensor", "ndarray", "NDArray"}
BRACKETS = re.compile(r"\[([^\[\]]*)\]|\(([^()]*)\)")
DIMENSION = re.compile(r"(?:[A-Za-z_][\w']*|\d+|\.\.\.)(?: ?[-+*/×] ?(?:\w+))*")
SIZE = re.compile(r"\b(?:\d+|[A-Z]\d?)\b")  # a number, or a letter as in [N, H, W, 3]
SIDES = {"height", "width", "channels", "rows", "columns", "classes", "batch", "bytes"}
FLAT = re.compile(r"\b(?:u?int|i|u|float|bool)\d* \[\w+\]")  # uint8 [bytes]
ANY_SHAPE = re.compile(r"any shape|same shape", re.IGNORECASE)
REFERENCE = re.compile(r"See `([\w.]+)`")
# A wrong call of one's own code or an abstract method; the caller has nothing to catch.
UNNAMED_ERRORS = {"AssertionError", "NotImplementedError", "StopIteration", "SystemExit"}
# How a command ends (typer turns them into exit codes). The docstring of a command is its help text.
COMMAND_ENDS = {"Exit", "BadParameter"}


@dataclass(frozen=True)
class Source:
    """A Python file and its syntax tree."""

    path: Path  # relative to the repository
    text: str
    tree: ast.Module = field(repr=False)

    @property
    def module(self) -> str:
        """The dotted name."""
        parts = self.path.with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@dataclass(frozen=True)
class Function:
    """A public function, or a public method of a public class."""

    node: ast.FunctionDef | ast.AsyncFunctionDef
    owner: ast.ClassDef | None

    @property
    def name(self) -> str:
        """The name a reader looks for: `Class.method` or `function`."""
        return f"{self.owner.name}.{self.node.name}" if self.owner else self.node.name

    def documentation(self, references: dict[str, str]) -> str:
        """The docstring and that of the class, with the text of every reference: "See `module.Class.method`"."""
        parts = [ast.get_docstring(self.node), ast.get_docstring(self.owner) if self.owner else None]
        own = "\n".join(part for part in parts if part)
        return "\n".join([own, *(references.get(name, "") for name in REFERENCE.findall(own))])

    def decorators(self) -> set[str]:
        """The last names of the decorators: `command` for `@app.command()`."""
        return {_last_name(each) for each in self.node.decorator_list}


def parse(path: Path, text: str) -> Source:
    """Read one file."""
    return Source(path, text, ast.parse(text))


def sources(*folders: str) -> list[Source]:
    """All Python files below these folders of the repository, without generated ones."""
    found = [path.relative_to(ROOT) for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [parse(path, (ROOT / path).read_text()) for path in found if not path.is_relative_to(GENERATED)]


def public(name: str) -> bool:
    """Whether a name is for readers outside its module."""
    return not name.startswith("_")


def public_classes(source: Source) -> Iterator[ast.ClassDef]:
    """Public classes of the module, without classes inside classes."""
    return (node for node in source.tree.body if isinstance(node, ast.ClassDef) and public(node.name))


def public_functions(source: Source) -> Iterator[Function]:
    """Public functions of the module and public methods of its public classes. Overloads have no body to describe."""
    for node in source.tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and public(node.name):
            yield Function(node, None)
    for owner in public_classes(source):
        for node in owner.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and public(node.name):
                function = Function(node, owner)
                if not function.decorators() & {"overload", "setter"}:
                    yield function


def without_docstring(source: Source) -> list[str]:
    """The module, public classes and public functions that have no docstring."""
    found = []
    if source.text and ast.get_docstring(source.tree) is None:
        found.append(f"{source.path}:1: the module has no docstring")
    for owner in public_classes(source):
        if ast.get_docstring(owner) is None:
            found.append(f"{source.path}:{owner.lineno}: {owner.name} has no docstring")
    for function in public_functions(source):
        if ast.get_docstring(function.node) is None and "override" not in function.decorators():
            found.append(f"{source.path}:{function.node.lineno}: {function.name} has no docstring")
    return found


def references(all_sources: Sequence[Source]) -> dict[str, str]:
    """The documentation of every public function and method, by its dotted name."""
    return {
        f"{source.module}.{function.name}": function.documentation({})
        for source in all_sources
        for function in public_functions(source)
    }


def without_shape(source: Source, aliases: dict[str, set[str]], known: dict[str, str]) -> list[str]:
    """Public functions that take or return an array, and whose documentation names no shape.

    `aliases` are the names of array types by module, as `array_aliases` finds them; `known` are the `references`.
    """
    names = ARRAY_TYPES | aliases.get(source.module, set())
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            imported = aliases.get(node.module, set())
            names |= {each.asname or each.name for each in node.names if each.name in imported}
    found = []
    for function in public_functions(source):
        arguments = function.node.args
        annotated = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg]
        annotations = [each.annotation for each in annotated if each is not None] + [function.node.returns]
        holds_array = any(_holds_array(each, names) for each in annotations if each is not None)
        if holds_array and not names_shape(function.documentation(known)):
            found.append(f"{source.path}:{function.node.lineno}: {function.name} names no shape, such as [N, H, W, 3]")
    return found


def names_shape(text: str) -> bool:
    """Whether a text holds a shape such as `[N, 4]`, `(B, C, H, W)` or `[rows, columns]`, or speaks of any shape."""
    for square, round_ in BRACKETS.findall(text):
        dimensions = [each.strip() for each in (square or round_).split(",") if each.strip()]
        has_size = any(SIZE.search(each) for each in dimensions) or (square and len(dimensions) > 1)
        if has_size and all(DIMENSION.fullmatch(each) for each in dimensions):
            return True
        if len(dimensions) > 1 and SIDES.issuperset(dimensions):
            return True
    return FLAT.search(text) is not None or ANY_SHAPE.search(text) is not None


def array_aliases(all_sources: Sequence[Source]) -> dict[str, set[str]]:
    """Names that a module gives to an array type: `Array = np.ndarray[...]`."""
    found: dict[str, set[str]] = {}
    for source in all_sources:
        for node in source.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                is_type = isinstance(node.value, ast.Name | ast.Attribute | ast.Subscript | ast.BinOp)
                if is_type and _holds_array(node.value, ARRAY_TYPES):
                    found.setdefault(source.module, set()).add(node.targets[0].id)
    return found


def error_bases(all_sources: Sequence[Source]) -> dict[str, set[str]]:
    """The base classes of every class, by name."""
    classes = [node for source in all_sources for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef)]
    return {each.name: {_last_name(base) for base in each.bases} for each in classes}


def unnamed_errors(source: Source, bases: dict[str, set[str]], known: dict[str, str]) -> list[str]:
    """Public functions that raise an error which their documentation does not name. `known` are the `references`.

    Errors that the function catches itself and broken invariants ("this is a bug") need no name.
    """
    found = []
    for function in public_functions(source):
        for line, name in sorted(set(_raised(function.node.body, bases, caught=frozenset()))):
            if name not in UNNAMED_ERRORS | COMMAND_ENDS and not re.search(
                rf"\b{name}\b", function.documentation(known)
            ):
                found.append(f"{source.path}:{line}: {function.name} raises {name}, and its docstring does not say so")
    return found


def _holds_array(annotation: ast.expr, names: set[str]) -> bool:
    """Whether a value of this type is an array or a sequence of arrays.

    Callables are left out, and so are mappings: weights and named outputs have as many shapes as names.
    """
    if isinstance(annotation, ast.Subscript) and _last_name(annotation.value) in {"Callable", "dict", "Mapping"}:
        return False
    if isinstance(annotation, ast.Name | ast.Attribute):
        return _last_name(annotation) in names
    return any(_holds_array(each, names) for each in ast.iter_child_nodes(annotation) if isinstance(each, ast.expr))


def _raised(
    body: Sequence[ast.AST], bases: dict[str, set[str]], *, caught: frozenset[str]
) -> Iterator[tuple[int, str]]:
    """Line and name of every `raise Error(...)` that leaves these statements. Functions inside are left out."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(node, ast.Try):
            handled = {_last_name(each) for handler in node.handlers for each in _types(handler)}
            yield from _raised(node.body, bases, caught=caught | handled)
            yield from _raised([*node.handlers, *node.orelse, *node.finalbody], bases, caught=caught)
        elif isinstance(node, ast.Raise):
            name = _last_name(node.exc) if node.exc is not None else ""
            bug = node.exc is not None and "this is a bug" in ast.unparse(node.exc)
            # A lower-case name is a caught error, or a function that makes one.
            if name[:1].isupper() and not caught & _ancestors(name, bases) and not bug:
                yield node.lineno, name
        else:
            yield from _raised(list(ast.iter_child_nodes(node)), bases, caught=caught)


def _ancestors(name: str, bases: dict[str, set[str]]) -> set[str]:
    """The class itself and everything that catches it, as far as the classes are ours."""
    found = {name, "Exception", "BaseException"}
    for base in bases.get(name, set()):
        found |= _ancestors(base, bases)
    return found


def _types(handler: ast.ExceptHandler) -> list[ast.expr]:
    if handler.type is None:
        return []
    return list(handler.type.elts) if isinstance(handler.type, ast.Tuple) else [handler.type]


def _last_name(node: ast.expr) -> str:
    """`c` of `a.b.c`, with or without a call."""
    if isinstance(node, ast.Call):
        return _last_name(node.func)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
