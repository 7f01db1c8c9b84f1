"""The gateway's shared memory in the file system: a private directory with slot files, a token and a socket.

In: the base directory that gateway and workers agreed on, a card, a size. Out: a `ShmRegion`. The gateway holds a file
lock on its directory, so that another gateway can recognise and remove the directory of a gateway that was killed.
Never reads or writes a slot.
"""

import fcntl
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from handlers.contract.card import Card
from handlers.contract.frame import ALIGNMENT_BYTES
from handlers.contract.shm_layout import DIRECTORY_PREFIX, SlotFile
from service.core import locked_directory
from service.transport.slots import InputSlots, OutputSlots

# What an answer's frame needs beside its tensors: header, alignment.
_FRAME_OVERHEAD_BYTES = 4096
_ITEM_BYTES = {"uint8": 1, "int32": 4, "float32": 4}
_PROBE = "probe"


@dataclass(frozen=True, slots=True)
class Size:
    """Slots of one model version. One output slot holds the answer to `max_batch` pictures at most."""

    max_batch: int
    inputs: int
    outputs: int
    input_bytes: int
    output_bytes: int

    @classmethod
    def wanted(cls, card: Card, *, max_batch: int, batches: int, pictures: int) -> "Size":
        """Slots for `pictures` decoded at once and `batches` on their way. As many batches may be in quarantine."""
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
        """Fewer input slots, at least one, so that the total is about `share` (0..1) of this size."""
        room_bytes = share * self.total_bytes - self.outputs * self.output_bytes
        return replace(self, inputs=max(1, min(self.inputs, int(room_bytes // self.input_bytes))))


@dataclass(frozen=True, slots=True)
class ShmRegion:
    """The slots of one model version, and the names by which workers open its files."""

    directory: str
    model: str
    inputs: InputSlots
    outputs: OutputSlots
    token: str
    calls: socket.socket  # listening; the workers connect here

    @property
    def inputs_name(self) -> str:
        """Name of the file of input slots."""
        return f"{self.directory}/{self.model}.inputs"

    @property
    def probe_name(self) -> str:
        """Name of the file that holds the token."""
        return f"{self.directory}/{_PROBE}"

    @property
    def calls_name(self) -> str:
        """Name of the socket that workers connect to."""
        return f"{self.directory}/{self.model}.calls"

    def output_name(self, index: int) -> str:
        """Name of the file of one output slot."""
        return f"{self.directory}/{self.model}.output-{index}"


class SharedDirectory:
    """A directory of this gateway in shared memory. The owner calls `remove` at the end."""

    def __init__(self, base: Path) -> None:
        """Make the directory, and remove the directories of dead gateways. Raises `OSError`."""
        locked_directory.remove_stale(base, DIRECTORY_PREFIX)
        self._descriptors: list[int] = []
        self._files: list[SlotFile] = []
        self._sockets: list[socket.socket] = []
        self._token = secrets.token_hex(16)
        self.path, self._folder = locked_directory.make(base, DIRECTORY_PREFIX)
        self._descriptors.append(self._folder)
        try:
            probe = os.open(self.path / _PROBE, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            self._descriptors.append(probe)
            os.write(probe, self._token.encode())
            fcntl.flock(probe, fcntl.LOCK_EX)  # the handshake asks workers whether they see this lock
        except BaseException:
            self.remove()
            raise

    def region(self, card: Card, size: Size, *, on_exhausted: Callable[[], None] = lambda: None) -> ShmRegion:
        """Make the slots of one model version. Raises `OSError` if not even one batch fits; no file is left then."""
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
            # Through the directory's descriptor, because the full path may be too long for a socket.
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
        return ShmRegion(self.path.name, card.name, inputs, outputs, self._token, calls)

    def remove(self) -> None:
        """Remove the directory and close its files. Arrays that are views of slots stay valid."""
        shutil.rmtree(self.path, ignore_errors=True)
        for file in self._files:
            file.close()
        for calls in self._sockets:
            calls.close()
        while self._descriptors:
            os.close(self._descriptors.pop())


def shares(wanted: Mapping[str, Size], budget_bytes: int) -> dict[str, Size]:
    """The size of each model within the budget: what it wants, or the same share of what it wants as every model."""
    total = sum(size.total_bytes for size in wanted.values())
    share = min(1.0, budget_bytes / total) if total else 1.0
    return {model: size.cut(share) for model, size in wanted.items()}
