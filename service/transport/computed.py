"""What a worker says of itself: the meta of its answer in, a `Computed` out.

The code of a worker comes from an archive. So its words are compared with those that are known: they become values of
metrics' labels and of gRPC metadata.
"""

import re
from collections.abc import Mapping
from typing import Any

from handlers.options import DTYPES, ENGINES
from service.core.types import Computed

OTHER = "other"  # stands for every word that is not known

_DEVICE = re.compile(r"cpu|cuda:[0-9]{1,2}")
_PAIRS = frozenset(f"{engine}/{dtype}" for engine in ENGINES for dtype in DTYPES)


def read(meta: Mapping[str, Any]) -> Computed:
    """What the meta of an answer, or of a handshake, says."""
    engine, dtype, device, refused = (
        str(meta.get(key, "")) for key in ("engine", "dtype", "device", "engines_refused")
    )
    return Computed(
        network_engine=engine if engine in ENGINES or not engine else OTHER,
        dtype=dtype if dtype in DTYPES or not dtype else OTHER,
        device=device if not device or _DEVICE.fullmatch(device) else OTHER,
        refused=",".join(sorted({pair if pair in _PAIRS else OTHER for pair in refused.split(",") if pair})),
    )
