"""mosec with OpenVINO, as a user would build it in an hour: nothing of our runtime.

The user has the TorchScript module, converts its network with `openvino.convert_model`, and calls the compiled model in
a mosec worker. OpenVINO chooses the dtype. Decoding, the module's own parts before and after the network, and the reply
message are those of every peer.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.peers import mosec_server
from benchmarks.peers.config import PeerConfig
from benchmarks.peers.model import PeerTask
from handlers.contract.archive_file import MODULE_ENTRY
from handlers.options import OPENVINO
from service.core.types import Decoded

_PRECISIONS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
_TELEMETRY = "openvino_telemetry"


class OpenVinoModel(PeerTask):
    """The network in OpenVINO. The constructor converts, compiles, and runs every number of pictures once."""

    engine = OPENVINO

    def __init__(self, config: PeerConfig) -> None:
        super().__init__(config)
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # otherwise it reports to a server of its authors
        import openvino  # noqa: PLC0415 - after the line above

        torch.set_num_threads(config.threads)
        module: Any = torch.jit.load(str(config.model_folder / MODULE_ENTRY), map_location="cpu")  # type: ignore[no-untyped-call]
        module.eval()
        self._pixels, self._postprocess = (torch.jit.freeze(part) for part in (module.pixels, module.postprocess))
        size = self._card.input
        with torch.inference_mode():
            example = self._pixels(torch.zeros(1, size.height, size.width, 3, dtype=torch.uint8))
        network = openvino.convert_model(
            torch.jit.freeze(module.network),
            example_input=example,
            input=[openvino.PartialShape([-1, 3, size.height, size.width])],
        )
        compiled = openvino.compile_model(
            network,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": config.threads,
                "ENABLE_CPU_PINNING": False,  # the workers would all pin to the same cores
            },
        )
        self.dtype = _PRECISIONS[compiled.get_property("INFERENCE_PRECISION_HINT").to_string()]
        self._request = compiled.create_infer_request()
        for count in range(1, config.max_batch + 1):
            self._run(np.zeros((count, size.height, size.width, 3), np.uint8))

    def answer(self, pictures: Sequence[Decoded]) -> list[bytes]:
        """Run one batch. Returns the serialized reply message of each picture."""
        outputs = self._run(np.stack([picture.pixels for picture in pictures]))
        arrays = {name: tensor.numpy() for name, tensor in zip(self.output_names, outputs, strict=True)}
        return self.replies(pictures, arrays)

    def _run(self, rows: Any) -> tuple[torch.Tensor, ...]:
        pixels = torch.from_numpy(rows)  # (N, H, W, 3), uint8
        with torch.inference_mode():
            found = self._request.infer([self._pixels(pixels).contiguous().numpy()], share_inputs=True)
            raw = tuple(torch.from_numpy(output) for output in found.to_tuple())
            outputs: torch.Tensor | tuple[torch.Tensor, ...] = self._postprocess(pixels, *raw)
        return (outputs,) if isinstance(outputs, torch.Tensor) else outputs


class Vision(mosec_server.Vision):
    """The same worker with this model."""

    make = OpenVinoModel


if __name__ == "__main__":
    mosec_server.main(Vision)
