"""Which file of a folder has the weights. Never opens it."""

from pathlib import Path

from model_store.hub.errors import HubError
from model_store.hub.said import Said

# In the order of preference; transformers and timm write both forms of the same weights.
_KNOWN = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_ENDS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")
_NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")  # of transformers' trainer


def find(folder: Path, said: Said) -> Path:
    """The file with the weights, or the index of its shards. Raises `HubError` where none or several could be meant."""
    known = [folder / name for name in _KNOWN if (folder / name).is_file()]
    if known:
        if len(known) > 1:
            said.notes.append(f"took {known[0].name}; the folder also has {', '.join(path.name for path in known[1:])}")
        return known[0]
    others = sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.name.endswith(_ENDS) and path.name not in _NO_WEIGHTS
    )
    if not others:
        raise HubError(f"{folder}: no weights; one of {', '.join(_KNOWN)}, or one file that ends in {', '.join(_ENDS)}")
    if len(others) > 1:
        names = ", ".join(path.name for path in others[:6])
        raise HubError(f"{folder}: several files could be the weights ({names}); say which with --checkpoint")
    return others[0]
