"""The list of heads: from an entry of the zoo to the code of its head."""

from typing import Any

from model_store.networks.heads import classifier, deeplabv3, pspnet, retinanet, semantic_fpn, ssdlite
from model_store.networks.heads.base import RegisteredHead
from model_store.zoo import HeadSpec, ModelSpec

HEADS: dict[type[HeadSpec], RegisteredHead[Any]] = {
    head.spec: head
    for head in (
        classifier.HEAD,
        ssdlite.HEAD,
        retinanet.HEAD,
        deeplabv3.HEAD,
        pspnet.HEAD,
        semantic_fpn.HEAD,
    )
}


def head_of(entry: ModelSpec) -> RegisteredHead[Any]:
    """The registered head of an entry. Raises `LookupError` for a head that is not in the list."""
    if type(entry.head) not in HEADS:
        raise LookupError(
            f"this is a bug: {entry.name} has the head {type(entry.head).__name__}, which is not registered; "
            "add it to model_store/networks/heads/registry.py"
        )
    return HEADS[type(entry.head)]
