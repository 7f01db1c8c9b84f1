"""The gateway's shared memory on disk: a private directory, files and sockets in it, and what dead gateways left.

In: the base directory both sides agreed on, the models and a budget. Out: one `Region` per model. The directory is held
by a file lock, so that the next gateway can tell one that is in use from one whose gateway was killed, and removes it.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from handlers.frame import ALIGNMENT_BYTES
from handlers.shm import DIRECTORY_PREFIX, SlotFile
from model_store.card import Card
from service.slots import InputSlots, OutputSlots

# Of an answer's frame beside its tensors: header, alignment.
_FRAME_OVERHEAD_BYTES = 4096
_ITEM_BYTES = {"uint8": 1, "int32": 4, "float32": 4}
_PROBE = "probe"


@dataclass(frozen=True, slots=True)
class Size:
    """Slots of one model. `max_batch` pictures are the most that one output slot answers."""

    max_batch: int
    inputs: int
    outputs: int
    input_bytes: int
    output_bytes: int

    @classmethod
    def wanted(cls, card: Card, *, max_batch: int, batches: int, pictures: int) -> "Size":
        """For `pictures` decoded at once and `batches` at work. As many again may be in quarantine."""
        row_bytes = 0
        for output in card.outputs:
            items = 1
            for side in output.shape:
                items *= side
            row_bytes += items * _ITEM_BYTES[output.dtype]
        return cls(
            max_batch=max_batch,
            inputs=pictures,
            outputs=2 * batches,
            input_bytes=card.input.height * card.input.width * 3,
            output_bytes=max_batch * row_bytes + len(card.outputs) * ALIGNMENT_BYTES + _FRAME_OVERHEAD_BYTES,
        )

    @property
    def total_bytes(self) -> int:
        """All slots together."""
        return self.inputs * self.input_bytes + self.outputs * self.output_bytes

    def cut(self, share: float) -> "Size":
        """The same with fewer input slots, at least one, so that the whole is about `share` of what it was."""
        room_bytes = share * self.total_bytes - self.outputs * self.output_bytes
        return replace(self, inputs=max(1, min(self.inputs, int(room_bytes // self.input_bytes))))


@dataclass(frozen=True, slots=True)
class Region:
    """The slots of one model, and the names by which workers open their files."""

    directory: str
    model: str
    inputs: InputSlots
    outputs: OutputSlots
    token: str
    calls: socket.socket  # listening; workers of this model call back here

    @property
    def inputs_name(self) -> str:
        """Of the file of input slots."""
        return f"{self.directory}/{self.model}.inputs"

    @property
    def probe_name(self) -> str:
        """Of the file that holds the token."""
        return f"{self.directory}/{_PROBE}"

    @property
    def calls_name(self) -> str:
        """Of the socket that workers call back."""
        return f"{self.directory}/{self.model}.calls"

    def output_name(self, index: int) -> str:
        """Of the file of one output slot."""
        return f"{self.directory}/{self.model}.output-{index}"


class SharedDirectory:
    """This gateway's directory in shared memory; `remove` it at the end."""

    def __init__(self, base: Path) -> None:
        """Make it, and remove those of dead gateways. Raises `OSError`."""
        remove_stale(base)
        self._descriptors: list[int] = []
        self._files: list[SlotFile] = []
        self._sockets: list[socket.socket] = []
        self._token = secrets.token_hex(16)
        self.path, self._folder = self._make(base)
        try:
            probe = os.open(self.path / _PROBE, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            self._descriptors.append(probe)
            os.write(probe, self._token.encode())
            fcntl.flock(probe, fcntl.LOCK_EX)  # workers are asked whether they see this
        except BaseException:
            self.remove()
            raise

    def region(self, card: Card, size: Size, *, on_exhausted: Callable[[], None] = lambda: None) -> Region:
        """Make the slots of one model. Raises `OSError` where not even one batch fits, leaving nothing of it."""
        made: list[tuple[Path, SlotFile]] = []
        calls = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

        def create(name: str, slots: int, slot_bytes: int) -> SlotFile:
            path = self.path / name
            file = SlotFile.create(path, slots=slots, slot_bytes=slot_bytes)
            made.append((path, file))
            return file

        try:
            inputs = InputSlots(
                create(f"{card.name}.inputs", size.inputs, size.input_bytes),
                (card.input.height, card.input.width, 3),
                on_exhausted=on_exhausted,
            )
            outputs = OutputSlots(
                [create(f"{card.name}.output-{index}", 1, size.output_bytes) for index in range(size.outputs)]
            )
            outputs.reserve()
            inputs.reserve(size.max_batch)
            # By the directory's descriptor: the path may be too long for a socket.
            calls.bind(f"/proc/self/fd/{self._folder}/{card.name}.calls")
            (self.path / f"{card.name}.calls").chmod(0o600)
            calls.listen()
        except BaseException:
            calls.close()
            for path, file in made:
                path.unlink()
                file.close()
            raise
        self._files += [file for _, file in made]
        self._sockets.append(calls)
        return Region(self.path.name, card.name, inputs, outputs, self._token, calls)

    def remove(self) -> None:
        """Unlink everything. Arrays that show slots stay valid."""
        shutil.rmtree(self.path, ignore_errors=True)
        for file in self._files:
            file.close()
        for calls in self._sockets:
            calls.close()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _make(self, base: Path) -> tuple[Path, int]:
        while True:
            path = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX, dir=base))  # mode 0700
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if path.exists():
                    self._descriptors.append(descriptor)
                    return path, descriptor
                os.close(descriptor)
            # Another gateway that starts took it for a dead one's before it was locked: once more.


def remove_stale(base: Path) -> None:
    """Remove the directories whose gateways are dead, which is when nobody holds their lock."""
    for path in base.glob(f"{DIRECTORY_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or removed by another gateway meanwhile
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(descriptor)


def shares(wanted: Mapping[str, Size], budget_bytes: int) -> dict[str, Size]:
    """What each model gets of the budget: all it wants, or else the same share of it as the others."""
    total = sum(size.total_bytes for size in wanted.values())
    share = min(1.0, budget_bytes / total) if total else 1.0
    return {model: size.cut(share) for model, size in wanted.items()}
