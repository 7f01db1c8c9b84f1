"""Settings: recording of calls, so that they can be replayed."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field


class RecordingSettings(BaseModel):
    """Recording of calls, so that they can be replayed."""

    recording_dir: Path | None = Field(
        default=None,
        description="Folder for recorded calls, one file each, for `mobilevision replay`. Unset: nothing is recorded. "
        "The server makes the folder with mode 0700, and refuses one that others may read: pictures are personal data.",
    )
    recording_content: Literal["all", "metadata"] = Field(
        default="all",
        description="all: pictures and answers. metadata: neither, only options, model, versions, digests and errors. "
        "Such a call cannot be replayed.",
    )
    recording_share: float = Field(
        default=1.0, gt=0, le=1, description="Share of the inference calls that is recorded, chosen by request id."
    )
    recording_megabytes: int = Field(
        default=256,
        ge=1,
        le=2**20,
        description="Disk space, in MiB, of all recorded calls. The oldest are deleted first. A call of a photograph "
        "takes about its file size: 256 MiB hold 1000 calls of 256 KiB. Calls that wait to be written take up to "
        "32 MiB of memory per gateway process, and the one that is written three times its size.",
    )
    recording_count: int = Field(
        default=10_000, ge=1, le=1_000_000, description="Most recorded calls. The oldest are deleted first."
    )
    recording_hours: float = Field(
        default=24.0,
        gt=0,
        le=8760,
        description="Recorded calls are deleted after this many hours, while the server runs or when it starts again.",
    )
