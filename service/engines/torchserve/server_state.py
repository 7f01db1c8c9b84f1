"""What the process that keeps a TorchServe tells the gateway processes that use it: a file in the run directory.

In and out: a `ServerState`. TorchServe listens on other ports after each start, and a model that cannot be loaded is
held back. The file is replaced as a whole. Only this user can read the folder.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

STATE_FILE = "server.json"
MAX_REASON_CHARS = 300


@dataclass(frozen=True, slots=True)
class ServerState:
    """Where TorchServe listens on loopback, and what is wrong with its models.

    `reasons` has the words of the last worker that could not load a model, by model. `held` has the version of each
    model that is not loaded because of that.
    """

    inference_port: int
    management_port: int
    reasons: Mapping[str, str] = field(default_factory=dict)
    held: Mapping[str, str] = field(default_factory=dict)

    def write(self, run: Path) -> None:
        """Replace the file in the run directory. Raises `OSError`."""
        temporary = run / f"{STATE_FILE}.part"
        temporary.write_text(json.dumps(asdict(self)))
        temporary.replace(run / STATE_FILE)

    @classmethod
    def read(cls, run: Path) -> "ServerState":
        """Read the file in the run directory. Raises `OSError`, `ValueError`, `TypeError`."""
        return cls(**json.loads((run / STATE_FILE).read_bytes()))


def reason_of(words: str) -> str:
    """A worker's words as one short printable line. They may hold anything that a model or an archive says."""
    line = " ".join(words.split())
    cut = line if len(line) <= MAX_REASON_CHARS else line[:MAX_REASON_CHARS] + "..."
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in cut)
