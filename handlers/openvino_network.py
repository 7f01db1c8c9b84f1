"""OpenVINO, a network engine for CPUs: the three parts of a served module in, a module that is ready to run out.

OpenVINO computes the submodule `network`; `pixels` and `postprocess` stay in TorchScript, because they have loops and
exact arithmetic (`model_store.networks.tasks.base`). The network is converted from the archive's own TorchScript when
it is loaded, so an archive knows nothing of this engine. Nothing here is imported where another engine is chosen, and
`openvino` itself only inside of a function.

The number of pictures is dynamic. OpenVINO prepares its kernels when a number comes for the first time, and keeps them:
see `EACH_SIZE`.
"""

import functools
import importlib.util
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from handlers.compiled_cache import CompiledCache
from handlers.errors import EngineUnfit

EACH_SIZE = True  # the first run at each number of pictures compiles: 50 to 150 ms (MobileViT-XXS), so all are warmed
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}

_TELEMETRY = "openvino_telemetry"
_LONGEST_REASON = 400  # characters: OpenVINO's messages begin with where in its own code they come from


@dataclass(frozen=True)
class Parts:
    """The submodules of a served module, each frozen in float32."""

    pixels: Any
    network: Any
    postprocess: Any


def installed() -> bool:
    """Whether the package is there. It is not imported."""
    try:
        return importlib.util.find_spec("openvino") is not None
    except (ImportError, ValueError):  # ValueError: an entry of sys.modules without a spec
        return False


def version() -> str:
    """The version and build of OpenVINO. Raises `EngineUnfit` if it cannot be imported."""
    text: str = _openvino().get_version()
    return text


def load(
    parts: Parts, *, dtype: torch.dtype, height_px: int, width_px: int, threads: int, cache: CompiledCache
) -> "OpenVinoModule":
    """The module with its network compiled for this CPU. Raises `EngineUnfit` if OpenVINO cannot run it in `dtype`."""
    core = _core()
    properties = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
        # One batch at a time, in as many threads as the operator gave this worker. Pinning would put the threads of
        # all workers on the same cores, because each process counts from the first one.
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    }

    def build() -> bytes:
        model = convert(parts, height_px=height_px, width_px=width_px)
        exported: bytes = core.compile_model(model, "CPU", properties).export_model().getvalue()
        return exported

    def read(content: bytes) -> Any:
        return core.import_model(content, "CPU", properties)

    try:
        compiled = cache.get(build, read)
        effective = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    except Exception as error:
        # The converter raises whatever its own code meets, and the plug-in RuntimeErrors.
        raise EngineUnfit(f"OpenVINO cannot compile the network: {_shortened(error)}") from error
    if effective != PRECISIONS[dtype]:
        raise EngineUnfit(f"OpenVINO computes in {effective} on this CPU, not in {PRECISIONS[dtype]}")
    return OpenVinoModule(parts.pixels, compiled.create_infer_request(), parts.postprocess)


class OpenVinoModule:
    """A served module whose network runs in OpenVINO: uint8 [N, H, W, 3] to the outputs, as `execution.Module`."""

    def __init__(self, pixels: Any, request: Any, postprocess: Any) -> None:
        self._pixels = pixels
        self._request = request
        self._postprocess = postprocess

    def raw(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the network returns for uint8 [N, H, W, 3]: float32 tensors of N rows. Raises `RuntimeError`."""
        x: torch.Tensor = self._pixels(pixels)  # (N, 3, H, W), channels last in memory
        rows = np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())  # a view of the same memory
        try:
            outputs = self._request.infer([rows], share_inputs=True)
        except MemoryError as error:
            raise RuntimeError(f"out of memory: {error}") from error  # as torch says it
        return tuple(torch.from_numpy(output) for output in outputs.to_tuple())

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The outputs for uint8 [N, H, W, 3]."""
        results: torch.Tensor | tuple[torch.Tensor, ...] = self._postprocess(pixels, *self.raw(pixels))
        return results


def convert(parts: Parts, *, height_px: int, width_px: int) -> Any:
    """The network as an OpenVINO model of any number of pictures; its input is float32 [N, H, W, 3]."""
    ov = _openvino()
    from openvino.frontend import FrontEndManager  # noqa: PLC0415 - see `installed`
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # noqa: PLC0415
    from openvino.preprocess import PrePostProcessor  # noqa: PLC0415

    with torch.inference_mode():
        example = parts.pixels(torch.zeros(1, height_px, width_px, 3, dtype=torch.uint8))
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(parts.network, example_input=example)  # has to outlive the conversion
    model = frontend.convert(frontend.load(decoder))
    model.reshape({model.inputs[0]: ov.PartialShape([-1, 3, height_px, width_px])})
    # The pixels lie channels last. OpenVINO computes so too, and a copy in another order is saved.
    steps = PrePostProcessor(model)
    steps.input().tensor().set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout("NCHW"))
    return steps.build()


@functools.cache
def _core() -> Any:
    """The one `Core` of this process, which is never destroyed.

    The CPU plug-in of each `Core` installs a stack for signal handlers, and at its end brings back the one before. If
    several end in another order, the process is left with a stack that is freed, and its next signal ends it.
    """
    ov = _openvino()
    try:
        return ov.Core()
    except RuntimeError as error:
        raise EngineUnfit(f"OpenVINO does not start: {_shortened(error)}") from error


def _openvino() -> Any:
    # `import openvino` reports itself to a server of its authors, and leaves files in the home directory. A worker
    # calls nobody: without the package that does it, OpenVINO uses a stub of its own.
    if "openvino" not in sys.modules:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino  # noqa: PLC0415 - only where it is chosen: it takes 0.4 s and 60 MB
    except (ImportError, OSError, RuntimeError) as error:  # a library that it needs is missing, or made for another CPU
        raise EngineUnfit(f"OpenVINO is installed, but cannot be imported: {_shortened(error)}") from error
    return openvino


def _shortened(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:_LONGEST_REASON]}"
