"""TorchScript: compile a served module, write it as bytes, read it again.

Equal modules give equal bytes, where `model_store.build.compiler` calls these functions in a fresh process.
"""

import io
import warnings
import zipfile

import torch
from torch import nn


def script(module: nn.Module) -> torch.jit.ScriptModule:
    """Compile a module. Raises what TorchScript's compiler raises, which are many unrelated types."""
    with warnings.catch_warnings():
        # torch 2.13 calls TorchScript deprecated; TorchServe and libtorch load it, and torch still supports it.
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted: torch.jit.ScriptModule = torch.jit.script(module)
    return scripted


def save(module: torch.jit.ScriptModule) -> bytes:
    """The module as bytes, without the parts that differ between equal exports.

    Debug records hold absolute paths of the sources. The serialization id is a checksum that includes these records.
    Loading needs neither. The rest of the bytes depends on the order of sets of strings, and on what the process
    scripted before (class names get numbers): `model_store.build.compiler` takes care of both.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(module, buffer)
    out = io.BytesIO()
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as cleaned:
        for name in archive.namelist():
            if not name.endswith((".debug_pkl", "/.data/serialization_id")):
                cleaned.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), archive.read(name))
    return out.getvalue()


def load(module_bytes: bytes) -> torch.jit.ScriptModule:
    """Load a saved module onto the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
            io.BytesIO(module_bytes), map_location="cpu"
        )
    return module
