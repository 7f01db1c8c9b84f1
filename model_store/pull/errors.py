"""Every way a pull can end without a checkpoint, as one closed tree. Each message says what to do.

    PullError
    ├── Unpublished          nobody published this checkpoint, or not in that layout
    ├── ByHand               it is published where a program cannot fetch it: the message has the link
    ├── DownloadError
    │   ├── BadAddress       not http or https
    │   ├── HttpRefused      the server answered with an error (404, 403, ...)
    │   ├── NotACheckpoint   the server sent a page or a pointer instead of the file
    │   └── ConnectionLost   no answer, or it broke off; what arrived is kept and the next pull goes on from there
    ├── NoSuchFile           what was given to --from is not there
    ├── WrongDigest          the bytes are not those that were published, or not those of the first pull
    ├── UnusableCheckpoint   unreadable, or not the weights of this model
    └── StoreError           the folder cannot be written (disk full, ...), is in use, or was damaged

Whatever the end, the store holds what it held before; only `ConnectionLost` leaves a `.part` file, to be resumed.
"""

from model_store.errors import CheckpointError


class PullError(Exception):
    """A pull that did not put a checkpoint into the store."""


class Unpublished(PullError):
    """There is no such file to pull."""


class ByHand(PullError):
    """The file has to be downloaded with a browser."""


class DownloadError(PullError):
    """The file did not arrive."""


class BadAddress(DownloadError):
    """The address is not one that is fetched here."""


class HttpRefused(DownloadError):
    """The server answered, and did not give the file. `status` is its HTTP status."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class NotACheckpoint(DownloadError):
    """The server gave something else."""


class ConnectionLost(DownloadError):
    """The network failed, more than once."""


class NoSuchFile(PullError):
    """A local file that was named does not exist, or cannot be read."""


class WrongDigest(PullError):
    """The bytes are not the expected ones."""


class UnusableCheckpoint(PullError, CheckpointError):
    """The file was read and is no use."""


class StoreError(PullError):
    """The store cannot be read or written."""
