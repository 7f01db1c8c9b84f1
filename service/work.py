"""The values that travel through the request path: frozen, typed, made by one stage and read by the next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from handlers.frame import Array
from service.slots import Lease


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the model input lies in the picture, so that results map back.

    `width_px` x `height_px` is the upright picture. (`x0`, `y0`, `x1`, `y1`) is the part of it, in its pixels, that was
    resized to the model input: the whole picture when squashed, the centre when cropped. May reach over the edge
    by less than a pixel of the model input.
    """

    width_px: int
    height_px: int
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture ready for the model: `pixels` uint8 [H, W, 3] RGB, contiguous, of the card's input size.

    `pixels` may lie in a slot of shared memory, and is somebody else's once that is given up.
    """

    pixels: Array
    geometry: Geometry
    format: str


class Priority(Enum):
    """Who goes first when work waits. BATCH yields, with a guaranteed share (`plan`)."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Job:
    """One picture waiting for a batch. Deadline and submission are readings of the injected clock.

    `lease` says where in shared memory `pixels` lies, if it does.
    """

    request_id: str
    pixels: Array
    deadline_seconds: float
    submitted_seconds: float
    priority: Priority = Priority.INTERACTIVE
    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What the backend made of a batch: one mapping output name -> tensor per job, in the jobs' order.

    `part`: pictures a worker runs at once; a larger batch it runs in parts of so many. 0: not known.
    """

    rows: Sequence[Mapping[str, Array]]
    transport_seconds: float
    inference_seconds: float
    part: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """The result tensors of one picture, by output name, without the batch dimension, and how they came about."""

    outputs: Mapping[str, Array]
    batch_size: int
    queue_seconds: float
    transport_seconds: float
    inference_seconds: float


@dataclass(slots=True)
class Record:
    """What one request became, filled in by the stages it passes and reported once, at the door."""

    request_id: str
    method: str = ""
    model: str = ""
    version: str = ""  # of the model, that answered, or that failed
    passed_on: str = ""  # the version that was asked first, where another one had to answer
    batch_size: int = 0
    trace_id: str | None = None  # 32 hexadecimal digits, where the request is traced
    stage_seconds: dict[str, float] = field(default_factory=dict)
