"""Files of a data set: which of them are pictures, and bounded reading of lists and annotations.

Pictures are known by their ending or by their first bytes. What is no picture is returned with the reason, so that
nothing is left out without a word. The folder is never written to.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from PIL import Image

from mobilevision.eval.errors import PackageMissing, UnusableDataset
from mobilevision.eval.labels import short

# The formats that the server reads, and those that it refuses with their name: such a picture counts as failed.
PICTURE_ENDINGS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".heic", ".heif", ".avif", ".jxl", ".jp2"),
}
_FIRST_BYTES = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|RIFF....WEBP|GIF8[79]a|II[*+]\x00|MM\x00[*+]|BM.{12}[\x0c-\x80]\x00\x00\x00", re.DOTALL
)
_HEAD_BYTES = 18

MAX_TEXT_BYTES = 64 << 20  # lists of pictures and of labels
MAX_JSON_BYTES = 1 << 30  # the largest annotations of COCO have 450 MB
MAX_YAML_BYTES = 64 << 10  # 4,000 names; PyYAML reads this much in a second or two
_DEEPEST = 10
_MOST_BRACKETS = 500
_ORIENTATION_TAG = 274
_TURNED = {5, 6, 7, 8}  # EXIF orientations that swap width and height


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that takes no part in the evaluation. `file` is its path below the folder of the data set."""

    file: str
    why: str


def key_of(path: Path, folder: Path) -> str:
    """The path below the folder, with "/" on every system."""
    return path.relative_to(folder).as_posix()


def pictures_below(top: Path, folder: Path, *, ignore: Iterable[str] = ()) -> tuple[list[Path], list[Skipped]]:
    """All pictures in `top` and the folders below it, sorted, and the other files. Links to folders are not followed.

    Files with an ending in `ignore` are in neither. Raises OSError where a folder cannot be read.
    """
    pictures, skipped = [], []
    ignored = set(ignore)
    for place, _, names in os.walk(top, onerror=_raise):
        for name in names:
            path = Path(place, name)
            if path.suffix.lower() in ignored:
                continue
            why = _why_no_picture(path)
            if why:
                skipped.append(Skipped(key_of(path, folder), why))
            else:
                pictures.append(path)
    return sorted(pictures), skipped


def is_picture(path: Path) -> bool:
    """Whether the name or the first bytes are those of a picture. Raises OSError."""
    return not _why_no_picture(path)


def inside(folder: Path, below: Path, name: object) -> Path:
    """The file called `name` in the folder `below`. Raises `UnusableDataset` where that lies outside `folder`."""
    text = str(name).replace("\\", "/")
    parts = PurePosixPath(text).parts
    absolute = PurePosixPath(text).is_absolute() or bool(PureWindowsPath(text).drive)
    if not isinstance(name, str) or not parts or absolute or ".." in parts or "\0" in text:
        raise UnusableDataset(f"{short(repr(name))} is no path of a file in {folder}")
    return below.joinpath(*parts)


def read_text(path: Path, *, limit: int = MAX_TEXT_BYTES) -> str:
    """A text file in UTF-8, with or without a byte order mark. Raises `UnusableDataset`, OSError."""
    return _decoded(path, _read(path, limit))


def read_json(path: Path) -> Any:
    """A JSON file. Raises `UnusableDataset`, OSError."""
    try:
        return json.loads(_decoded(path, _read(path, MAX_JSON_BYTES)))
    except (ValueError, RecursionError) as error:
        raise UnusableDataset(f"{path} is no usable JSON: {_first_line(error)}") from error


def read_yaml(path: Path) -> Any:
    """A YAML file of plain values. Aliases are refused: few bytes of them can stand for very much data.

    Raises `PackageMissing`, `UnusableDataset`, OSError.
    """
    try:
        import yaml  # noqa: PLC0415 - an optional package
    except ModuleNotFoundError as error:
        raise PackageMissing(
            f"{path.name} needs PyYAML: pip install 'mobilevision[eval]'; or list the class names in classes.txt"
        ) from error
    text = read_text(path, limit=MAX_YAML_BYTES)
    if text.count("[") + text.count("{") > _MOST_BRACKETS:  # PyYAML's time grows with the square of nested ones
        raise UnusableDataset(f"{path} has more than {_MOST_BRACKETS} brackets; names are a plain list")
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _DEEPEST:
                raise UnusableDataset(f"{path} has YAML aliases (*name), or values {_DEEPEST} deep: names are a list")
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, AttributeError) as error:
        raise UnusableDataset(f"{path} is no usable YAML: {_first_line(error)}") from error


def read_names(path: Path) -> list[str]:
    """One name per line; empty lines are left out. Raises `UnusableDataset`, OSError."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture as the EXIF orientation turns it. Only the header is read.

    Raises ValueError where Pillow cannot read it.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION_TAG) in _TURNED
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path.name} cannot be opened: {_first_line(error)}") from error
    return (height, width) if turned else (width, height)


def _why_no_picture(path: Path) -> str:
    if path.name.startswith("."):
        return "hidden file"
    if not path.is_file():
        return "not a file"
    if path.suffix.lower() in PICTURE_ENDINGS:
        return ""
    with path.open("rb") as file:
        if _FIRST_BYTES.match(file.read(_HEAD_BYTES)):
            return ""
    return "not a picture"


def _read(path: Path, limit: int) -> bytes:
    if not path.is_file():
        raise UnusableDataset(f"{path} is no file")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UnusableDataset(f"{path} is larger than the {limit >> 10} KiB that such a file may have")
    return content


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnusableDataset(f"{path} is no text in UTF-8 (byte {error.start})") from error


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _raise(error: OSError) -> None:
    raise error
