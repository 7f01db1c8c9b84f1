"""The values that pass between rooms: typed, made by one stage and read by the next. All but the record are frozen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from handlers.contract.frame import Array


class Lease(Protocol):
    """A slot of shared memory with the pixels of one picture, reserved while it has holders. Event loop only."""

    index: int | None  # None: no slot was free, so the pixels are in ordinary memory
    generation: int

    @property
    def held(self) -> bool:
        """Whether the slot still belongs to this picture."""
        ...

    def acquire(self) -> None:
        """Add a holder."""
        ...

    def release(self) -> None:
        """Remove a holder. Removing the last one frees the slot."""
        ...


@dataclass(frozen=True, slots=True)
class Usage:
    """The number of slots of shared memory in each state."""

    free: int = 0
    used: int = 0
    quarantined: int = 0


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the model input lies in the picture. Results are mapped back with it.

    `width_px` x `height_px` is the size of the upright picture. (`x0`, `y0`, `x1`, `y1`) is the rectangle, in pixels of
    the picture, that was resized to the model input: the whole picture in mode squash, its centre in mode crop. The
    rectangle may exceed the picture by less than a pixel of the model input.
    """

    width_px: int
    height_px: int
    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def picture_px(self) -> int:
        """Pixels of the whole picture."""
        return self.width_px * self.height_px


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture ready for the model: `pixels` uint8 [H, W, 3] RGB, contiguous, of the card's input size.

    If `pixels` lies in a slot of shared memory, it is valid only while the lease of the slot is held.
    """

    pixels: Array
    geometry: Geometry
    format: str


class Priority(Enum):
    """Which requests go first when several wait. BATCH yields to INTERACTIVE, but keeps a guaranteed share."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Job:
    """One picture waiting for a batch. `pixels` is uint8 [H, W, 3].

    `deadline_at` and `submitted_at` are readings of the injected clock. `lease` is the slot of shared memory that
    `pixels` lies in, None if it lies elsewhere. `picture_px` is width * height of the picture before it was resized.
    `caller` is the authenticated identity of who sent it, empty where there is none.
    """

    request_id: str
    pixels: Array
    deadline_at: float
    submitted_at: float
    priority: Priority = Priority.INTERACTIVE
    lease: Lease | None = None
    picture_px: int = 0
    caller: str = ""


@dataclass(frozen=True, slots=True)
class Computed:
    """What a worker says that it computes with, in and on. The values are of closed sets; empty: it did not say.

    `network_engine` is torchscript or openvino, `dtype` float32, bfloat16 or float16, `device` cpu or cuda:N. `refused`
    are faster pairs of engine and dtype that do not fit the model, as `engine/dtype`, separated by commas. A word that
    is not known is `other`.
    """

    network_engine: str = ""
    dtype: str = ""
    device: str = ""
    refused: str = ""

    @property
    def device_kind(self) -> str:
        """The device without its number: cpu or cuda. The workers of one model may have several GPUs."""
        return self.device.partition(":")[0]


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The result of a batch: one mapping from output name to tensor per job, in the order of the jobs.

    `micro_batch`: how many pictures the worker runs at once. It runs a larger batch as several micro-batches. 0: not
    known. `network_engine`, `dtype`, `device`: what the worker computed with, in and on, such as `openvino`, `float32`
    and `cpu`; empty if it did not say.
    """

    rows: Sequence[Mapping[str, Array]]
    transport_seconds: float
    inference_seconds: float
    micro_batch: int = 0
    network_engine: str = ""
    dtype: str = ""
    device: str = ""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The output tensors of one picture, by name, without batch dimension. Also size, times and place of its batch."""

    outputs: Mapping[str, Array]
    batch_size: int
    queue_seconds: float
    transport_seconds: float
    inference_seconds: float
    network_engine: str = ""
    dtype: str = ""
    device: str = ""


@dataclass(slots=True)
class RequestRecord:
    """What is reported about one request. The stages fill it in; `service.frontends.call` reports it once."""

    request_id: str
    method: str = ""  # name of the method in the proto
    model: str = ""
    version: str = ""  # version of the model that answered or failed
    module_sha256: str = ""  # of that version
    network_engine: str = ""  # what the worker computed with, in and on; empty if no worker answered
    dtype: str = ""
    device: str = ""
    passed_on: str = ""  # the candidate that was tried first, if the stable version had to answer in its place
    batch_size: int = 0
    trace_id: str | None = None  # 32 hexadecimal digits; None if the request is not traced
    caller: str = ""  # who called, never a key; empty if the call was anonymous or refused for its credentials
    stage_seconds: dict[str, float] = field(default_factory=dict)  # by stage, in the order of the stages


def engine_of(serving_engine: str, by: RequestRecord | Computed) -> str:
    """The engine as replies name it: the serving engine, and what computed the network if a worker said so."""
    return f"{serving_engine}/{by.network_engine}" if by.network_engine else serving_engine
