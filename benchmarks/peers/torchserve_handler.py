"""The handler of `torchserve_alone`: TorchServe's stages with our decoding, module and replies."""

from typing import Any

from ts.torch_handler.base_handler import BaseHandler

from benchmarks.peers.config import PeerConfig
from benchmarks.peers.model import PeerModel
from service.core.types import Decoded


class PeerHandler(BaseHandler):  # type: ignore[misc]  # TorchServe has no types
    """Batch of request bodies in, batch of reply bytes out."""

    def initialize(self, context: Any) -> None:
        """Load with our runtime. BaseHandler would load without freezing, dtype and warm-up."""
        self._peer = PeerModel(PeerConfig.from_environment())
        self.context = context
        self.initialized = True

    def preprocess(self, data: list[dict[str, Any]]) -> list[Decoded]:
        """Decode each body."""
        return [self._peer.decode(bytes(row.get("data") or row.get("body") or b"")) for row in data]

    def inference(self, data: list[Decoded], *_: Any, **__: Any) -> list[bytes]:
        """Run the module and write the replies."""
        return self._peer.answer(data)

    def postprocess(self, data: list[bytes]) -> list[bytes]:
        """Return the replies, which are complete."""
        return data
