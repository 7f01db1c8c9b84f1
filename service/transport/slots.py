"""The gateway's slots in shared memory: one input slot per picture, one output slot per batch of one model version.

In: slot files. Out: leases of input slots, and output slots. Never sends anything and never waits for a worker.

An input slot is free again when every holder released its lease: the request, the thread that decodes into the slot,
and the batch. Workers only read input slots. A worker that is late notices that the slot's generation changed, so a
lost batch needs no further care.

A worker writes into an output slot, possibly after the batch was lost or timed out. Such a slot goes into quarantine:
its generation changes at once, and the slot is used again only when the gateway gets the lock of the slot's file. A
worker holds that lock while it writes (see `handlers.contract.shm_layout`), so no waiting time has to be guessed.

The kernel reserves memory for a slot at its first use, so memory grows with the load, up to the size of the file.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from handlers.contract.frame import Array
from handlers.contract.shm_layout import SlotFile
from service.core.types import Usage

GROW_AGAIN_SECONDS = 10.0  # between two attempts to reserve memory while the file system is full

_log = logging.getLogger(__name__)


class SlotLease:
    """A place for the pixels of one picture: a slot, once `allocate` found one. `with` releases the lease at the end.

    A lease begins with one holder, who made it.
    """

    def __init__(self, slots: "InputSlots") -> None:
        self._slots = slots
        self._holders = 1
        self.index: int | None = None
        self.generation = 0

    def allocate(self) -> Array | None:
        """The slot's pixels to write into, uint8 (H, W, 3). None if no slot is free. Safe in any thread."""
        taken = self._slots.take()
        if taken is None:
            return None
        self.index, self.generation, pixels = taken
        return pixels

    @property
    def held(self) -> bool:
        """Whether the slot, if there is one, still belongs to this picture."""
        return self._holders > 0

    def acquire(self) -> None:
        """Add a holder. Event loop only, like `release`."""
        if not self.held:
            raise RuntimeError("this is a bug: a lease is acquired after its last holder released it")
        self._holders += 1

    def release(self) -> None:
        """Remove a holder. The last one frees the slot, and its pixels belong to another picture from then on."""
        if not self.held:
            raise RuntimeError("this is a bug: a lease is released more often than acquired")
        self._holders -= 1
        if not self.held and self.index is not None:
            self._slots.free(self.index)

    def __enter__(self) -> "SlotLease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class InputSlots:
    """Input slots of one model version. `file` None: there are no slots, and every picture travels inline.

    The handshake sets `offered`: False while the workers cannot read the slots. `on_exhausted` is called when a picture
    gets no slot because all are used.
    """

    def __init__(
        self,
        file: SlotFile | None,
        shape: tuple[int, int, int],
        *,
        on_exhausted: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = file
        self._shape = shape
        self._on_exhausted = on_exhausted
        self._lock = threading.Lock()
        self._free: list[int] = []  # reserved and free; the last one was used last, so it is most likely in the caches
        self._reserved = 0
        self._slots = 0 if file is None else file.slots
        self._clock = clock
        self._full_until: float | None = None  # a reading of the clock; None: the file system has room
        self.offered = False

    def lease(self) -> SlotLease:
        """A lease whose only holder is the caller."""
        return SlotLease(self)

    def reserve(self, count: int) -> None:
        """Reserve the first `count` slots now. Raises `OSError` if they do not fit."""
        with self._lock:
            while self._file is not None and self._reserved < min(count, self._slots):
                self._file.reserve(self._reserved)
                self._free.append(self._reserved)
                self._reserved += 1

    def take(self) -> tuple[int, int, Array] | None:
        """Take a free slot: its index, its new generation, its pixels uint8 [H, W, 3]. None if no slot is free."""
        with self._lock:
            if self._file is None or not self.offered:
                return None
            if not self._free and not self._grow(self._file):
                self._on_exhausted()
                return None
            index = self._free.pop()
            return index, self._file.renew(index), self._file.slot(index).reshape(self._shape)

    def free(self, index: int) -> None:
        """Give a slot back."""
        with self._lock:
            self._free.append(index)

    def usage(self) -> Usage:
        """Slots by state. Slots that are not reserved yet count as free, unless the file system is full."""
        with self._lock:
            used = self._reserved - len(self._free)
            slots = self._slots if self._full_until is None else self._reserved
            return Usage(free=slots - used, used=used)

    def _grow(self, file: SlotFile) -> bool:
        if self._reserved == self._slots or (self._full_until is not None and self._clock() < self._full_until):
            return False
        try:
            file.reserve(self._reserved)
        except OSError as error:
            self._log_full(file, error)
            self._full_until = self._clock() + GROW_AGAIN_SECONDS
            return False
        if self._full_until is not None:
            _log.info("shared memory has room again for more than %d slots", self._reserved)
            self._full_until = None
        self._free.append(self._reserved)
        self._reserved += 1
        return True

    def _log_full(self, file: SlotFile, error: OSError) -> None:
        if self._full_until is None:  # once, until it has room again
            _log.warning(
                "shared memory is full after %d of %d slots of %d bytes (%s): further pictures travel inline; give "
                "it more room or lower shm_megabytes",
                self._reserved,
                self._slots,
                file.slot_bytes,
                error.strerror,
            )


@dataclass(frozen=True, slots=True)
class OutputSlot:
    """An output slot taken for one batch: the index of its file, and its generation."""

    index: int
    generation: int


class OutputSlots:
    """Output slots of one model version. Each is a file of its own, so that each has a lock."""

    def __init__(self, files: Sequence[SlotFile]) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._free = list(range(len(files)))
        self._quarantined: list[int] = []

    def reserve(self) -> None:
        """Reserve all slots. Raises `OSError` if they do not fit."""
        for file in self._files:
            file.reserve(0)

    def take(self) -> OutputSlot | None:
        """Take a slot. Only a worker that gets its generation can write into it. None if no slot is free."""
        with self._lock:
            self._reclaim()
            if not self._free:
                return None
            index = self._free.pop()
            return OutputSlot(index, self._files[index].renew(0))

    def content(self, slot: OutputSlot) -> Array:
        """The bytes of a taken slot, uint8 [bytes]."""
        return self._files[slot.index].slot(0)

    def free(self, slot: OutputSlot) -> None:
        """Give back a slot whose batch was answered."""
        with self._lock:
            self._free.append(slot.index)

    def quarantine(self, slot: OutputSlot) -> None:
        """Give back a slot whose batch was not answered: a worker may still write into it."""
        with self._lock:
            self._files[slot.index].renew(0)
            self._quarantined.append(slot.index)

    def usage(self) -> Usage:
        """Slots by state. Safe in any thread."""
        with self._lock:
            self._reclaim()
            free, quarantined = len(self._free), len(self._quarantined)
            return Usage(free=free, used=len(self._files) - free - quarantined, quarantined=quarantined)

    def _reclaim(self) -> None:
        # The generation changed before: a worker that gets the lock later finds it changed and does not write.
        for index in list(self._quarantined):
            with self._files[index].locked() as nobody_writes:
                if nobody_writes:
                    self._quarantined.remove(index)
                    self._free.append(index)
