"""The gateway's slots in shared memory: one input slot per picture, one output slot per batch of one model.

An input slot is free again when nobody holds its `Lease`: the request, the thread that decodes into it, the batch that
carries it. Workers only read input slots, and notice by the generation when they are late, so a lost batch needs no
more care than that.

An output slot is written by a worker. Where a batch was lost or timed out that may still happen, so the slot goes into
**quarantine**: its generation changes at once, and it is reused only when its file's lock can be had, which no worker
that might still write lets go of (see `handlers.shm`). No waiting time is guessed.

Slots are reserved in the kernel when they are first used, so memory grows with the load up to the file's size.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from handlers.frame import Array
from handlers.shm import SlotFile

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Usage:
    """How many slots are in which state."""

    free: int = 0
    used: int = 0
    quarantined: int = 0


class Lease:
    """A place for the pixels of one picture: a slot once `allocate` found one. A `with` holds it."""

    def __init__(self, slots: "InputSlots") -> None:
        self._slots = slots
        self._holders = 1
        self.index: int | None = None
        self.generation = 0

    def allocate(self) -> Array | None:
        """The slot's pixels, uint8 (H, W, 3), to write into; None where no slot is free. Safe in any thread."""
        taken = self._slots.take()
        if taken is None:
            return None
        self.index, self.generation, pixels = taken
        return pixels

    @property
    def held(self) -> bool:
        """Whether the slot, if there is one, is still this picture's."""
        return self._holders > 0

    def hold(self) -> None:
        """One more holder. Event loop only, like `drop`."""
        if not self.held:
            raise RuntimeError("this is a bug: a lease that was given up is held again")
        self._holders += 1

    def drop(self) -> None:
        """One holder less; the last one frees the slot, and the pixels are somebody else's from then on."""
        if not self.held:
            raise RuntimeError("this is a bug: a lease was dropped more often than held")
        self._holders -= 1
        if not self.held and self.index is not None:
            self._slots.free(self.index)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.drop()


class InputSlots:
    """Input slots of one model. `file` None: there are none, and every picture is carried inline.

    `offered` is set by the carrier: False while the workers would not read the slots anyway.
    """

    def __init__(
        self,
        file: SlotFile | None,
        shape: tuple[int, int, int],
        *,
        on_exhausted: Callable[[], None] = lambda: None,
    ) -> None:
        self._file = file
        self._shape = shape
        self._on_exhausted = on_exhausted
        self._lock = threading.Lock()
        self._free: list[int] = []  # reserved and free; the last one is the warmest
        self._reserved = 0
        self._slots = 0 if file is None else file.slots
        self.offered = False

    def lend(self) -> Lease:
        """A lease with one holder, the caller."""
        return Lease(self)

    def reserve(self, count: int) -> None:
        """Reserve the first `count` slots now. Raises `OSError` where they do not fit."""
        with self._lock:
            while self._file is not None and self._reserved < min(count, self._slots):
                self._file.reserve(self._reserved)
                self._free.append(self._reserved)
                self._reserved += 1

    def take(self) -> tuple[int, int, Array] | None:
        """Index, new generation and pixels of a free slot."""
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
        """Slots not reserved yet count as free."""
        with self._lock:
            used = self._reserved - len(self._free)
            return Usage(free=self._slots - used, used=used)

    def _grow(self, file: SlotFile) -> bool:
        if self._reserved == self._slots:
            return False
        try:
            file.reserve(self._reserved)
        except OSError as error:
            _log.warning(
                "shared memory is full after %d of %d slots of %d bytes (%s): pictures beyond are carried inline; give "
                "it more room or lower shm_megabytes",
                self._reserved,
                self._slots,
                file.slot_bytes,
                error.strerror,
            )
            self._slots = self._reserved
            return False
        self._free.append(self._reserved)
        self._reserved += 1
        return True


@dataclass(frozen=True, slots=True)
class OutputSlot:
    """An output slot lent to one batch: the file's place among its model's, and the generation."""

    index: int
    generation: int


class OutputSlots:
    """Output slots of one model, each a file of one slot so that each has a lock."""

    def __init__(self, files: Sequence[SlotFile]) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._free = list(range(len(files)))
        self._quarantined: list[int] = []

    def reserve(self) -> None:
        """Reserve all of them. Raises `OSError` where they do not fit."""
        for file in self._files:
            file.reserve(0)

    def take(self) -> OutputSlot | None:
        """A slot no worker can write into but the one that is told its generation."""
        with self._lock:
            self._reclaim()
            if not self._free:
                return None
            index = self._free.pop()
            return OutputSlot(index, self._files[index].renew(0))

    def content(self, slot: OutputSlot) -> Array:
        """The bytes of a taken slot, uint8."""
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
        """Safe in any thread."""
        with self._lock:
            self._reclaim()
            free, quarantined = len(self._free), len(self._quarantined)
            return Usage(free=free, used=len(self._files) - free - quarantined, quarantined=quarantined)

    def _reclaim(self) -> None:
        # The generation changed before: whoever gets the lock after us finds it changed and does not write.
        for index in list(self._quarantined):
            with self._files[index].locked() as nobody_writes:
                if nobody_writes:
                    self._quarantined.remove(index)
                    self._free.append(index)
