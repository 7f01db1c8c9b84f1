"""What every peer does with pictures: our decode, our module as our runtime loads it, our reply message as bytes."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from google.protobuf.message import Message

from benchmarks.peers.config import PeerConfig
from handlers.frame import Array
from handlers.runtime import RuntimeOptions, load
from model_store.card import Card, Task
from service.decode import Limits, decode
from service.pb.mobilevision.v1 import vision_pb2
from service.results import (
    DEFAULT_MAX_DETECTIONS,
    DEFAULT_SCORE_THRESHOLD,
    DEFAULT_TOP_K,
    classify_response,
    detect_response,
    segment_response,
)
from service.work import Decoded, Row

CONTENT_TYPE = "application/x-protobuf"

_LIMITS = Limits(max_bytes=20 * 2**20, max_pixels=100_000_000)  # the gateway's defaults
_RENDER: Mapping[Task, Callable[[Card, Decoded, Row], Message]] = {
    Task.CLASSIFY: partial(classify_response, top_k=DEFAULT_TOP_K),
    Task.DETECT: partial(
        detect_response, score_threshold=DEFAULT_SCORE_THRESHOLD, max_detections=DEFAULT_MAX_DETECTIONS
    ),
    Task.SEGMENT: partial(segment_response, encoding=vision_pb2.MASK_ENCODING_PNG, include_confidence=False),
}


class PeerTask:
    """What is done before and after the module."""

    def __init__(self, config: PeerConfig) -> None:
        self._card = Card.read(config.model_folder / "card.json")
        self._render = _RENDER[self._card.task]
        self.output_names = tuple(output.name for output in self._card.outputs)

    def decode(self, image: bytes) -> Decoded:
        """A picture, ready for the model."""
        return decode(image, size=self._card.input, preprocess=self._card.preprocess, limits=_LIMITS)

    def replies(self, pictures: Sequence[Decoded], outputs: Mapping[str, Array]) -> list[bytes]:
        """A serialised reply message for each picture of a batch."""
        replies = []
        for index, picture in enumerate(pictures):
            row = Row(
                outputs={name: array[index] for name, array in outputs.items()},
                batch_size=len(pictures),
                queue_seconds=0.0,
                transport_seconds=0.0,
                inference_seconds=0.0,
            )
            replies.append(self._render(self._card, picture, row).SerializeToString())
        return replies


class PeerModel(PeerTask):
    """One archive in a worker of a peer: loaded and warm when constructed."""

    def __init__(self, config: PeerConfig) -> None:
        super().__init__(config)
        options = RuntimeOptions(threads=config.threads)
        self._runner = load(config.model_folder, gpu_id=0 if config.gpu else None, options=options)

    def answer(self, pictures: Sequence[Decoded]) -> list[bytes]:
        """One batch; a serialised reply message for each picture."""
        return self.replies(pictures, self._runner.run(np.stack([picture.pixels for picture in pictures])))
