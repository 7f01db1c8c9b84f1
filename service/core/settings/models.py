"""Settings: which models are served, from where, and what runs them."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, model_validator


class ModelSettings(BaseModel):
    """Which models are served, from where, and what runs them."""

    archives: Path = Field(
        default=Path("model_store/archives"), description="Folder with the .mar archives and their cards."
    )
    models: tuple[str, ...] = Field(
        default=(),
        description="Names of the models to serve. Empty: every archive in the folder, if there are at most six.",
    )
    default_models: tuple[str, ...] = Field(
        default=(),
        description="Models for requests that name no model, at most one per task. Empty: the model with official "
        "weights, else custom, demo or random weights; among several, the smallest.",
    )
    rollout_file: Path | None = Field(
        default=None,
        description="File that says which version of a model is served (docs/rollout.md). The server watches it; it "
        "may be absent. Unset: rollout.json in the archives folder.",
    )
    require_signature: Path | None = Field(
        default=None,
        description="File with public keys (Ed25519, PEM). An archive is loaded only if one of them signed it "
        "(docs/security.md). The server reads the file again for each archive. Unset: archives need no signature, and "
        "only their digests are checked. Needs the extra `signing`.",
    )
    workers_per_model: int = Field(
        default=0,
        ge=0,
        le=64,
        description="TorchServe workers per model. 0: two per GPU; without a GPU, the cores are divided among the "
        "models, with at most one worker per GiB of memory; 1 if another program started TorchServe.",
    )
    worker_threads: int = Field(
        default=0,
        ge=0,
        le=256,
        description="Torch threads per worker. 0: one, or more if memory allows fewer workers than there are cores.",
    )
    batches_per_worker: int = Field(
        default=2,
        ge=1,
        le=8,
        description="Batches sent to a worker at once, including the one it runs. 2: the next batch is already there "
        "when a worker finishes one, unless a deadline is near. 1: workers are idle for a moment between "
        "batches.",
    )
    engine: Literal["auto", "torchscript", "openvino"] = Field(
        default="auto",
        description="What computes the networks in the workers. auto: OpenVINO on CPUs where the extra `openvino` is "
        "installed, else TorchScript. A worker uses OpenVINO for a model only if it computes what TorchScript computes "
        "in float32; otherwise it uses TorchScript and says so in its log and in the metrics. openvino: workers do not "
        "start where OpenVINO is not installed.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Number type of the models. auto: float16 on a GPU; bfloat16 on a CPU that computes faster in it "
        "(TorchScript: with AMX; OpenVINO: with AMX or AVX512-BF16), for models whose card says that at least 98 % of "
        "the answers stay the same; else float32. float32 turns bfloat16 off.",
    )
    cuda_graphs: bool = Field(
        default=True,
        description="On a GPU: capture each batch size as a CUDA graph. Off: launch the kernels one by one.",
    )
    require_gpu: bool = Field(
        default=False,
        description="Serve on GPUs or not at all: the server does not start where it sees no GPU, and a worker that "
        "cannot compute on one does not start and says why. Off: such a worker uses the CPU.",
    )
    startup_timeout_seconds: float = Field(
        default=300.0, gt=0, le=3600, description="Longest wait for the models to load at start."
    )
    batch_timeout_seconds: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="Longest wait for the result of a batch. After it, the worker counts as stuck.",
    )
    hung_worker_seconds: float = Field(
        default=3.0,
        ge=2,
        le=3600,
        description="A worker that does not answer a batch for ten times as long as its batches took, and for at least "
        "this long, is ended and replaced. Its batch is run again if a deadline allows it. A model with one worker "
        "fails for this time plus the time that a worker needs to start.",
    )
    run_dir: Path | None = Field(
        default=None, description="Folder for the private files and logs of TorchServe. Unset: a temporary folder."
    )
    torchserve_inference: str | None = Field(
        default=None,
        description="host:port of the gRPC inference API of a TorchServe that another program started. Unset: the "
        "server starts its own TorchServe.",
    )
    torchserve_management: str | None = Field(
        default=None,
        description="host:port of the gRPC management API of that TorchServe. Required with torchserve_inference.",
    )
    torchserve_key_file: Path | None = Field(
        default=None,
        description="The key_file.json of that TorchServe, if it requires tokens. The server reads it again when it "
        "changes.",
    )
    shm_megabytes: int = Field(
        default=256,
        ge=0,
        le=2**20,
        description="Most shared memory, in MiB, for pictures and results between gateway and workers. It grows with "
        "the load and counts as memory of the container. 0: pixels are sent inside the calls.",
    )
    shm_dir: Path = Field(
        default=Path("/dev/shm"),  # noqa: S108 - the gateway makes private directories in it
        description="Folder of the shared memory, on a memory file system. A TorchServe that another program started "
        "needs the same MOBILEVISION_SHM_DIR, user and mount; otherwise pixels are sent inside the calls.",
    )

    @model_validator(mode="after")
    def _external_backend_is_whole(self) -> "ModelSettings":
        if (self.torchserve_inference is None) != (self.torchserve_management is None):
            raise ValueError("torchserve_inference and torchserve_management go together")
        return self
