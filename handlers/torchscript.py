"""TorchScript, the reference among the network engines: a module file in, a module that is ready to run out.

Every archive is TorchScript and runs on this engine. Another engine takes over the network of a module, split here
(`parts`); `handlers.engine` chooses. The rest of the worker only needs a callable (`execution.Module`).
"""

from pathlib import Path

import torch

from handlers.errors import EngineUnfit
from handlers.execution import Module
from handlers.openvino_network import Parts


def load(path: Path, device: torch.device, dtype: torch.dtype) -> Module:
    """Load a TorchScript file, prepared for its device."""
    module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    return prepare(module, device, dtype)


def prepare(module: torch.jit.ScriptModule, device: torch.device, dtype: torch.dtype) -> Module:
    """The module, frozen on its device, in its dtype and memory layout (channels last)."""
    fix_fusion_strategy()
    moved = module.eval().to(device=device, dtype=dtype)
    # torch's annotations of Module.to leave memory_format out
    moved = moved.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    frozen: Module = torch.jit.freeze(moved)
    return frozen


def parts(path: Path) -> Parts:
    """The parts of a served module on the CPU, each frozen in float32.

    Raises `EngineUnfit` for a module that is not made of these parts.
    """
    fix_fusion_strategy()
    module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    module = module.eval().to(memory_format=torch.channels_last)
    try:
        return Parts(*(torch.jit.freeze(getattr(module, name)) for name in ("pixels", "network", "postprocess")))
    except (AttributeError, RuntimeError) as error:
        raise EngineUnfit("the module has no parts `pixels`, `network` and `postprocess`: build it again") from error


def fix_fusion_strategy() -> None:
    """Keep TorchScript from recompiling for new shapes.

    The default strategy may fuse for two static and ten dynamic sets of shapes, and compiles when it first meets one
    (on GPUs: triton-inference-server/server#3012). Without fusion, TorchScript compiles the profiled graph on the
    second call and never again. On a CPU both were equally fast once warm, and no fusion warmed up faster.
    """
    torch.jit.set_fusion_strategy([])
