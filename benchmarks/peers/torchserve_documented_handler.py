"""The handler of `torchserve_documented`. BaseHandler loads and runs the module; decoding and replies are ours."""

from typing import Any

import numpy as np
import torch
from ts.torch_handler.base_handler import BaseHandler

from benchmarks.peers.config import PeerConfig
from benchmarks.peers.model import PeerTask


class DocumentedHandler(BaseHandler):  # type: ignore[misc]  # TorchServe has no types
    """Batch of request bodies in, batch of reply bytes out."""

    def initialize(self, context: Any) -> None:
        """Load the module, as BaseHandler does, and the card."""
        super().initialize(context)
        self._task = PeerTask(PeerConfig.from_environment())

    def preprocess(self, data: list[dict[str, Any]]) -> torch.Tensor:
        """Decode each body."""
        self._pictures = [self._task.decode(bytes(row.get("data") or row.get("body") or b"")) for row in data]
        return torch.from_numpy(np.stack([picture.pixels for picture in self._pictures]))

    def postprocess(self, data: tuple[torch.Tensor, ...]) -> list[bytes]:
        """Write the replies."""
        outputs = zip(self._task.output_names, data, strict=True)
        return self._task.replies(self._pictures, {name: tensor.numpy() for name, tensor in outputs})
