"""The work that every peer does on pictures: our decoding, our module in our runtime, our reply message.

Replies name the engine and the dtype that computed them, as those of our server do.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from benchmarks.peers.config import PeerConfig
from handlers.contract.card import Card, Task
from handlers.contract.frame import Array
from handlers.options import TORCHSCRIPT
from handlers.runtime import RuntimeOptions, load
from service.core.types import Decoded, Prediction
from service.frontends.tasks.classify import DEFAULT_TOP_K, classify_response
from service.frontends.tasks.detect import DEFAULT_MAX_DETECTIONS, DEFAULT_SCORE_THRESHOLD, detect_response
from service.frontends.tasks.segment import segment_response
from service.pb.mobilevision.v1 import vision_pb2
from service.preprocess.image import decode
from service.preprocess.limits import Limits

CONTENT_TYPE = "application/x-protobuf"

Reply = vision_pb2.ClassifyResponse | vision_pb2.DetectResponse | vision_pb2.SegmentResponse

_LIMITS = Limits(max_bytes=20 * 2**20, max_pixels=64_000_000)  # defaults of the gateway
_RENDER: Mapping[Task, Callable[[Card, Decoded, Prediction], Reply]] = {
    Task.CLASSIFY: partial(classify_response, top_k=DEFAULT_TOP_K),
    Task.DETECT: partial(
        detect_response, score_threshold=DEFAULT_SCORE_THRESHOLD, max_detections=DEFAULT_MAX_DETECTIONS
    ),
    Task.SEGMENT: partial(segment_response, encoding=vision_pb2.MASK_ENCODING_PNG, include_confidence=False),
}


class PeerTask:
    """Decoding before the module and replies after it. `engine` and `dtype` are what computes the network."""

    engine = TORCHSCRIPT
    dtype = "float32"

    def __init__(self, config: PeerConfig) -> None:
        self._card = Card.read(config.model_folder / "card.json")
        self._render = _RENDER[self._card.task]
        self.output_names = tuple(output.name for output in self._card.outputs)

    def decode(self, image: bytes) -> Decoded:
        """Decode a picture for the model."""
        return decode(image, size=self._card.input, preprocess=self._card.preprocess, limits=_LIMITS)

    def replies(self, pictures: Sequence[Decoded], outputs: Mapping[str, Array]) -> list[bytes]:
        """The serialized reply message of each picture. `outputs`: arrays with the batch as their first dimension."""
        replies = []
        for index, picture in enumerate(pictures):
            prediction = Prediction(
                outputs={name: array[index] for name, array in outputs.items()},
                batch_size=len(pictures),
                queue_seconds=0.0,
                transport_seconds=0.0,
                inference_seconds=0.0,
            )
            reply = self._render(self._card, picture, prediction)
            reply.model.engine, reply.model.dtype = self.engine, self.dtype
            replies.append(reply.SerializeToString())
        return replies


class PeerModel(PeerTask):
    """One archive in a worker of a peer. The constructor loads it and warms it up."""

    def __init__(self, config: PeerConfig) -> None:
        super().__init__(config)
        options = RuntimeOptions(threads=config.threads, engine=config.engine, dtype=config.dtype)
        self._runner = load(config.model_folder, gpu_id=0 if config.gpu else None, options=options)
        self.engine, self.dtype = self._runner.engine, self._runner.dtype_name

    def answer(self, pictures: Sequence[Decoded]) -> list[bytes]:
        """Run one batch. Returns the serialized reply message of each picture."""
        return self.replies(pictures, self._runner.run(np.stack([picture.pixels for picture in pictures])))
