"""Shared memory between gateway and worker: files of equal slots, and the rules for reading and writing a slot.

In: paths, and names relative to a base directory. Out: views of slots. Numpy and the standard library only, because the
gateway imports this module too. A slot file, made by the gateway and mapped by both sides, is

    magic "MVS1" | u32 slots | u64 slot bytes | generations i32 [slots] | padding | slots, each on a page of its own

little-endian. A slot's generation changes whenever the slot gets a new owner. **Reading** was correct if the generation
is the expected one before and after. **Writing** needs more, because a worker may be late: the worker takes the file's
lock (`flock`), compares the generation, writes, and releases the lock. The kernel releases the lock of a worker that
dies. A gateway that changed the generation and then gets the lock therefore knows that no worker writes any more.

`Memory` is the worker's side. It opens files below one directory only, which the worker's environment names, and
refuses (`Refused`) every other name.
"""

import fcntl
import mmap
import os
import re
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from handlers.contract.frame import Array

MAGIC = b"MVS1"
PAGE_BYTES = 4096
FIRST_GENERATION, LAST_GENERATION = 1, 2**31 - 1  # 0: the slot never had an owner
DIRECTORY_PREFIX = "mobilevision-shm-"
MAX_TOKEN_BYTES = 128

_HEADER = struct.Struct("<4sIQ")
_NAME = re.compile(rf"({DIRECTORY_PREFIX}[a-z0-9_]{{1,40}})/([a-z0-9][a-z0-9_.-]{{0,119}})")


class Refused(Exception):
    """This worker cannot or must not use the shared memory of a request. The gateway sends the pixels instead."""


class SlotFile:
    """One mapped slot file. The gateway makes it with `create`, the worker maps it with `of_descriptor`."""

    def __init__(self, descriptor: int, *, slots: int, slot_bytes: int, writable: bool) -> None:
        """Map the file of `descriptor`, which must have the right size. Takes over `descriptor`."""
        self._descriptor = descriptor
        self.slots = slots
        self.slot_bytes = slot_bytes
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        # The mapping ends when the last view of it is gone.
        self._bytes: Array = np.frombuffer(
            mmap.mmap(descriptor, _file_bytes(slots, slot_bytes), mmap.MAP_SHARED, protection), np.uint8
        )
        # i32 [slots]; only the gateway writes them
        self.generations: Array = self._generations()

    @classmethod
    def create(cls, path: Path, *, slots: int, slot_bytes: int) -> "SlotFile":
        """Make the file, with memory for the header only: see `reserve`. Raises `OSError`."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _data_start(slots))
            os.pwrite(descriptor, _HEADER.pack(MAGIC, slots, slot_bytes), 0)
            os.ftruncate(descriptor, _file_bytes(slots, slot_bytes))
            return cls(descriptor, slots=slots, slot_bytes=slot_bytes, writable=True)
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def of_descriptor(cls, descriptor: int, *, writable: bool) -> "SlotFile":
        """Map a file that the gateway made. Takes over `descriptor`. Raises `Refused` if it is not a slot file."""
        try:
            size = os.fstat(descriptor).st_size
            head = os.pread(descriptor, _HEADER.size, 0)
            magic, slots, slot_bytes = _HEADER.unpack(head) if len(head) == _HEADER.size else (b"", 0, 0)
            if magic != MAGIC or not slots or not slot_bytes or size != _file_bytes(slots, slot_bytes):
                raise Refused(f"a file of {size} bytes is not a slot file")  # noqa: TRY301 - the descriptor is closed below
            return cls(descriptor, slots=slots, slot_bytes=slot_bytes, writable=writable)
        except BaseException:
            os.close(descriptor)
            raise

    def reserve(self, index: int) -> None:
        """Make the kernel reserve memory for a slot, so that writing to it cannot fail. Raises `OSError`.

        Without a reservation, writing to a full file system would end the process with SIGBUS.
        """
        os.posix_fallocate(self._descriptor, self._start(index), _paged(self.slot_bytes))

    def slot(self, index: int) -> Array:
        """The bytes of one slot, uint8 [slot_bytes]."""
        start = self._start(index)
        return self._bytes[start : start + self.slot_bytes]

    def renew(self, index: int) -> int:
        """Give the slot its next generation, and return that generation."""
        last = int(self.generations[index])
        generation = FIRST_GENERATION if last == LAST_GENERATION else last + 1
        self.generations[index] = generation
        return generation

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Try to take the file's lock, and yield whether that succeeded. Another process may hold the lock."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file. Arrays that are views of it stay valid; without any, its memory is free at once.

        Later writes go to private memory. The mapping must not wait for the garbage collector, which may find a retired
        model version only after hours: until then the kernel could not free the memory of the removed file.
        """
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            header = self._bytes[: _HEADER.size + 4 * self.slots].copy()
            self._bytes = np.zeros(len(self._bytes), np.uint8)  # takes no memory before it is written
            self._bytes[: len(header)] = header
            self.generations = self._generations()

    def _generations(self) -> Array:
        return self._bytes[_HEADER.size : _HEADER.size + 4 * self.slots].view("<i4")

    def _start(self, index: int) -> int:
        if not 0 <= index < self.slots:
            raise IndexError(f"slot {index} of {self.slots}")
        return _data_start(self.slots) + index * _paged(self.slot_bytes)


def _paged(size_bytes: int) -> int:
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES


def _data_start(slots: int) -> int:
    return _paged(_HEADER.size + 4 * slots)


def _file_bytes(slots: int, slot_bytes: int) -> int:
    return _data_start(slots) + slots * _paged(slot_bytes)


class Memory:
    """A worker's view of the gateways' shared memory: slot files below `base`, each mapped once.

    `base` None: this worker has no directory and refuses everything. For one thread.
    """

    def __init__(self, base: Path | None) -> None:
        self._base = base
        self._mapped: dict[str, tuple[tuple[int, int], SlotFile]] = {}  # name -> (device, inode), file

    def token(self, name: str) -> str:
        """The token in a gateway's probe file. Raises `Refused`, also if the file is not seen locked."""
        descriptor = self._open(name, writable=False)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return os.pread(descriptor, MAX_TOKEN_BYTES, 0).decode("ascii", "replace")
            raise Refused("this worker does not see the gateway's file locks")
        finally:
            os.close(descriptor)

    def rows(self, name: str, slots: Array, shape: tuple[int, int, int]) -> list[Array]:
        """Views of N input slots, uint8 `shape` (H, W, 3). `slots` i32 [N, 2]: index, generation. Raises `Refused`."""
        file = self._file(name, writable=False)
        height, width, channels = shape
        if min(shape) < 1 or height * width * channels != file.slot_bytes:
            raise Refused(f"slots of {file.slot_bytes} bytes do not hold pictures of shape {shape}")
        self.check(name, slots)
        return [file.slot(int(index)).reshape(shape) for index in slots[:, 0]]

    def check(self, name: str, slots: Array) -> None:
        """Raise `Refused` if one of `slots`, as in `rows` [N, 2], has another picture by now. Call `rows` first."""
        _, file = self._mapped[name]
        index = slots[:, 0]
        if index.size and not 0 <= index.min() <= index.max() < file.slots:
            raise Refused(f"the file has {file.slots} slots; slots {index.min()} to {index.max()} are outside of it")
        if not np.array_equal(file.generations[index], slots[:, 1]):
            raise Refused("this worker is late: a slot holds another picture by now")

    @contextmanager
    def output(self, name: str, generation: int) -> Iterator[Array]:
        """An output slot, uint8 [bytes], to write to inside the `with`. Raises `Refused` if it has a new owner."""
        file = self._file(name, writable=True)
        with file.locked() as mine:
            if not mine or int(file.generations[0]) != generation:
                raise Refused("this worker is late: the output slot belongs to another batch by now")
            yield file.slot(0)

    def _file(self, name: str, *, writable: bool) -> SlotFile:
        known = self._mapped.get(name)
        if known is not None and known[0] == self._identity(name):
            return known[1]
        # A gateway that started again has new files: close the files that the last gateway removed.
        for old in [old for old, (identity, _) in self._mapped.items() if identity != self._identity(old)]:
            self._mapped.pop(old)[1].close()
        descriptor = self._open(name, writable=writable)
        status = os.fstat(descriptor)
        file = SlotFile.of_descriptor(descriptor, writable=writable)
        self._mapped[name] = ((status.st_dev, status.st_ino), file)
        return file

    def _identity(self, name: str) -> tuple[int, int] | None:
        if self._base is None:
            return None
        try:
            # Called for every batch; `Path.stat` would take ten times as long.
            status = os.stat(f"{self._base}/{name}", follow_symlinks=False)  # noqa: PTH116
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def connect(self, name: str) -> socket.socket:
        """Connect to a socket in a gateway's directory. Raises `Refused`."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with self._folder(name) as (folder, last):
                connection.connect(f"/proc/self/fd/{folder}/{last}")  # the full path may be too long for a socket
        except BaseException as error:
            connection.close()
            if isinstance(error, OSError):
                raise Refused(f"{name} does not answer: {error.strerror}") from error
            raise
        return connection

    def _open(self, name: str, *, writable: bool) -> int:
        """Open a regular file in a gateway's private directory. Raises `Refused`."""
        with self._folder(name) as (folder, last):
            # O_NONBLOCK: opening a pipe would wait for its other end.
            access = os.O_RDWR if writable else os.O_RDONLY
            try:
                descriptor = os.open(last, access | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
            except OSError as error:
                raise Refused(f"{name} cannot be opened: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise Refused(f"{name} is not a file")
        return descriptor

    @contextmanager
    def _folder(self, name: str) -> Iterator[tuple[int, str]]:
        """Open the private directory of the file `name`. Yields its descriptor and the file's name in it.

        Raises `Refused`.
        """
        if self._base is None:
            raise Refused("MOBILEVISION_SHM_DIR is not set for this worker")
        parts = _NAME.fullmatch(name)
        if parts is None:
            raise Refused(f"{name!r} is not the name of a gateway's file")
        opened: list[int] = []
        try:
            try:
                opened.append(os.open(self._base, os.O_RDONLY | os.O_DIRECTORY))
                # Step by step and without following links, so that no name leads outside of `base`.
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                opened.append(os.open(parts[1], flags, dir_fd=opened[0]))
            except OSError as error:
                raise Refused(f"{self._base / parts[1]} cannot be opened: {error.strerror}") from error
            folder = os.fstat(opened[1])
            if folder.st_uid != os.geteuid() or folder.st_mode & 0o077:
                raise Refused(f"{self._base / parts[1]} is not private to user {os.geteuid()}")
            yield opened[1], parts[2]
        finally:
            for descriptor in opened:
                os.close(descriptor)
