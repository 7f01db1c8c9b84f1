"""Shared memory between gateway and worker: files of equal slots, and who may touch a slot when.

A slot file, made by the gateway and mapped by both sides, is

    magic "MVS1" | u32 slots | u64 slot bytes | generations i32 [slots] | padding | slots, each on a page of its own

little-endian. A slot's generation changes whenever it is given to somebody new. **Reading** a slot is right if the
generation is the expected one before and after. **Writing** is stricter, because a worker may be late: it holds the
file's lock (`flock`) from before it looks at the generation until it has written. The kernel drops the lock of a
worker that dies, so a gateway that changed the generation and then gets the lock knows that nobody writes any more.

`Memory` is the worker's side. It opens files under one directory only, the one its environment names, and refuses
(`Refused`) whatever else it is asked for. Numpy and the standard library only; the gateway imports it too.
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
from typing import Any

import numpy as np

MAGIC = b"MVS1"
PAGE_BYTES = 4096
FIRST_GENERATION, LAST_GENERATION = 1, 2**31 - 1  # 0: never given to anybody
DIRECTORY_PREFIX = "mobilevision-shm-"
MAX_TOKEN_BYTES = 128

_HEADER = struct.Struct("<4sIQ")
_NAME = re.compile(rf"({DIRECTORY_PREFIX}[a-z0-9_]{{1,40}})/([a-z0-9][a-z0-9_.-]{{0,119}})")

Array = np.ndarray[Any, np.dtype[Any]]


class Refused(Exception):
    """This worker cannot or must not use the shared memory it was asked for; the gateway sends the pixels instead."""


class SlotFile:
    """One mapped slot file. `create` is the gateway's, `of_descriptor` the worker's way to one."""

    def __init__(self, descriptor: int, *, slots: int, slot_bytes: int, writable: bool) -> None:
        """Take over `descriptor`, whose file has the right size."""
        self._descriptor = descriptor
        self.slots = slots
        self.slot_bytes = slot_bytes
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        # The mapping ends with the last array that shows it.
        self._bytes: Array = np.frombuffer(
            mmap.mmap(descriptor, _file_bytes(slots, slot_bytes), mmap.MAP_SHARED, protection), np.uint8
        )
        # i32 [slots]; written by the gateway alone
        self.generations: Array = self._bytes[_HEADER.size : _HEADER.size + 4 * slots].view("<i4")

    @classmethod
    def create(cls, path: Path, *, slots: int, slot_bytes: int) -> "SlotFile":
        """Make the file, with room for the header only: see `reserve`. Raises `OSError`."""
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
        """Map a file that the other side made; takes over `descriptor`. Raises `Refused` for any other file."""
        try:
            size = os.fstat(descriptor).st_size
            head = os.pread(descriptor, _HEADER.size, 0)
            magic, slots, slot_bytes = _HEADER.unpack(head) if len(head) == _HEADER.size else (b"", 0, 0)
            if magic != MAGIC or not slots or not slot_bytes or size != _file_bytes(slots, slot_bytes):
                raise Refused(f"a file of {size} bytes is not a slot file")  # noqa: TRY301 - closes it on its way
            return cls(descriptor, slots=slots, slot_bytes=slot_bytes, writable=writable)
        except BaseException:
            os.close(descriptor)
            raise

    def reserve(self, index: int) -> None:
        """Have the kernel find memory for a slot, so that writing to it cannot fail. Raises `OSError`.

        Writing to a full file system without would end the process with SIGBUS.
        """
        os.posix_fallocate(self._descriptor, self._start(index), _paged(self.slot_bytes))

    def slot(self, index: int) -> Array:
        """The bytes of one slot, uint8 [slot_bytes]."""
        start = self._start(index)
        return self._bytes[start : start + self.slot_bytes]

    def renew(self, index: int) -> int:
        """Give the slot its next generation, which is returned."""
        last = int(self.generations[index])
        generation = FIRST_GENERATION if last == LAST_GENERATION else last + 1
        self.generations[index] = generation
        return generation

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Try to hold the file's lock; whether it is held. Another opening of the same file holds it otherwise."""
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
        """Give the file up. Arrays that show it stay valid."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

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
    """What a worker sees of the gateways' shared memory: slot files below `base`, mapped once each.

    `base` None: this worker was given no directory and refuses everything. For one thread.
    """

    def __init__(self, base: Path | None) -> None:
        self._base = base
        self._mapped: dict[str, tuple[tuple[int, int], SlotFile]] = {}  # name -> (device, inode), file

    def token(self, name: str) -> str:
        """The token in a gateway's probe file, whose lock the gateway must be seen to hold. Raises `Refused`."""
        descriptor = self._open(name, writable=False)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return os.pread(descriptor, MAX_TOKEN_BYTES, 0).decode("ascii", "replace")
            raise Refused("the gateway's file locks are not seen here")
        finally:
            os.close(descriptor)

    def rows(self, name: str, slots: Array, shape: tuple[int, int, int]) -> list[Array]:
        """Views uint8 (H, W, 3) of input slots. `slots` i32 [N, 2]: index, generation. Raises `Refused`."""
        file = self._file(name, writable=False)
        height, width, channels = shape
        if min(shape) < 1 or height * width * channels != file.slot_bytes:
            raise Refused(f"slots of {file.slot_bytes} bytes do not hold pictures of shape {shape}")
        self.check(name, slots)
        return [file.slot(int(index)).reshape(shape) for index in slots[:, 0]]

    def check(self, name: str, slots: Array) -> None:
        """Raises `Refused` if a slot is another picture's by now. After `rows`, for the file that it read."""
        _, file = self._mapped[name]
        index = slots[:, 0]
        if index.size and not 0 <= index.min() <= index.max() < file.slots:
            raise Refused(f"there are {file.slots} slots; slot {index.min()} or {index.max()} is not one")
        if not np.array_equal(file.generations[index], slots[:, 1]):
            raise Refused("this worker is late: a slot holds another picture by now")

    @contextmanager
    def output(self, name: str, generation: int) -> Iterator[Array]:
        """The output slot uint8 [bytes], to write within the `with`. Raises `Refused` if it is not ours any more."""
        file = self._file(name, writable=True)
        with file.locked() as mine:
            if not mine or int(file.generations[0]) != generation:
                raise Refused("this worker is late: the output slot is another batch's by now")
            yield file.slot(0)

    def _file(self, name: str, *, writable: bool) -> SlotFile:
        known = self._mapped.get(name)
        if known is not None and known[0] == self._identity(name):
            return known[1]
        # A gateway that was started anew has other files: let go of what the last one removed.
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
            # Asked for every batch; a `Path` would take ten times as long.
            status = os.stat(f"{self._base}/{name}", follow_symlinks=False)  # noqa: PTH116
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def connect(self, name: str) -> socket.socket:
        """Connect to the socket of a gateway's directory. Raises `Refused`."""
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
        """A descriptor of a regular file in a private directory of a gateway. Raises `Refused`."""
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
        """A descriptor of the private directory that `name` is in, and its name there. Raises `Refused`."""
        if self._base is None:
            raise Refused("MOBILEVISION_SHM_DIR is not set for this worker")
        parts = _NAME.fullmatch(name)
        if parts is None:
            raise Refused(f"{name!r} is not the name of a gateway's file")
        opened: list[int] = []
        try:
            try:
                opened.append(os.open(self._base, os.O_RDONLY | os.O_DIRECTORY))
                # Step by step and without following links, so that nothing outside can be named.
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
