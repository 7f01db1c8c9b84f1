"""Read definition files. In: a path. Out: a `Definition` with absolute paths, or a `DefinitionError` of one line."""

import difflib
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from model_store.definition.errors import DefinitionError
from model_store.definition.schema import Definition, ExpectTable, HeadTable, InputTable, PreprocessTable
from model_store.weights.layouts import LAYOUTS

MAX_BYTES = 2**20

_TABLES: dict[str, type[BaseModel]] = {
    "input": InputTable,
    "preprocess": PreprocessTable,
    "head": HeadTable,
    "expect": ExpectTable,
}
_PATHS = ("torchscript", "checkpoint", "labels")


def read(path: Path) -> tuple[Definition, str]:
    """Return the definition in a file, and the text of the file. Raises `DefinitionError`."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DefinitionError(f"{path}: over {MAX_BYTES // 2**20} MiB; is it a definition?")
        text = path.read_text(encoding="utf-8-sig")
        content = tomllib.loads(text)
    except OSError as error:
        raise DefinitionError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DefinitionError(f"{path}: not UTF-8 text; is it a definition?") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise DefinitionError(f"{path}: not TOML: {error}") from error
    return parse(content, where=str(path), folder=path.parent), text


def parse(content: dict[str, Any], *, where: str, folder: Path) -> Definition:
    """Return the definition with these keys. Relative paths start at `folder`, messages with `where`.

    Raises `DefinitionError`.
    """
    try:
        definition = Definition.model_validate(content)
    except ValidationError as error:
        raise DefinitionError("; ".join(f"{where}: {_explained(fault)}" for fault in error.errors())) from error
    if definition.layout is not None and definition.layout not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise DefinitionError(f"{where}: layout: no layout is called {definition.layout!r}; there are {known}")
    absolute: dict[str, Any] = {
        key: folder / value for key in _PATHS if isinstance(value := getattr(definition, key), Path)
    }
    if definition.expect is not None:
        expect = definition.expect
        answer, picture = folder / expect.answer, folder / expect.picture
        absolute["expect"] = ExpectTable(answer=answer, picture=picture)
    return definition.model_copy(update=absolute)


def _explained(fault: Any) -> str:
    keys = [str(part) for part in fault["loc"] if not _is_a_kind(part)]
    name = f"[{keys[0]}] {'.'.join(keys[1:])}" if keys and keys[0] in _TABLES and keys[1:] else ".".join(keys)
    if fault["type"] == "extra_forbidden":
        return f"{name}: unknown key{_nearest(keys)}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{name}: {message[0].lower()}{message[1:]}" if name else message


def _is_a_kind(part: int | str) -> bool:
    """Whether pydantic means one of the types of a union, not a key."""
    return isinstance(part, str) and ("[" in part or part in {"path"})


def _nearest(keys: list[str]) -> str:
    table = _TABLES[keys[0]] if len(keys) > 1 and keys[0] in _TABLES else Definition
    known = list(table.model_fields)
    close = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    elsewhere = [name for name, other in _TABLES.items() if keys[-1] in other.model_fields and other is not table]
    if elsewhere:
        return f"; it belongs into the table [{elsewhere[0]}]"
    return f"; there are {', '.join(known)}"
