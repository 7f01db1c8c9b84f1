"""What a head registers: how its network is built and how it is served.

A head file defines one `RegisteredHead`; `model_store.networks.heads.registry` lists all of them. Nothing else in the
build path depends on which head a model has.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import nn

from model_store.networks.backbones.base import Channels
from model_store.networks.pixels import Pixels
from model_store.networks.tasks.base import TaskContract
from model_store.zoo import HeadSpec, ModelSpec

Spec = TypeVar("Spec", bound=HeadSpec)


@dataclass(frozen=True)
class RegisteredHead(Generic[Spec]):
    """One head.

    Attributes:
        spec: the class by which entries of the zoo state this head and its options.
        contract: names of the outputs and the agreement measure; mostly that of a module in `networks.tasks`.
        build: (options, entry, channels of the backbone's maps) to the head with fresh weights. The head takes the
            backbone's list of maps. Its raw outputs, a tensor or a tuple of tensors, go to the served module.
        serve: (options, entry, pixels, network) to the served module, see `networks.tasks.base`. `network` is backbone
            and head.

    """

    spec: type[Spec]
    contract: TaskContract
    build: Callable[[Spec, ModelSpec, Channels], nn.Module]
    serve: Callable[[Spec, ModelSpec, Pixels, nn.Module], nn.Module]
