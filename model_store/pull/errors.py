"""Every way in which a pull can fail, as one closed tree. Each message tells the user what to do.

    PullError
    ├── Unpublished          this checkpoint was never published, or not in that layout
    ├── ByHand               it is published where a program cannot fetch it: the message has the link
    ├── DownloadError
    │   ├── BadAddress       not http or https
    │   ├── HttpRefused      the server answered with an error (404, 403, ...)
    │   ├── NotACheckpoint   the server sent a page or a pointer instead of the file
    │   └── ConnectionLost   no answer, or it broke off; the received bytes are kept, and the next pull continues
    ├── NoSuchFile           the file or folder of --from does not exist
    ├── WrongDigest          the bytes are not the published ones, or not those of the first pull
    ├── UnusableCheckpoint   unreadable, or not the weights of this model
    └── StoreError           the folder cannot be written (disk full, ...), is in use, or was damaged

After a failure the store is unchanged. Only `ConnectionLost` leaves a `.part` file, which the next pull resumes.
"""

from model_store.weights.errors import CheckpointError


class PullError(Exception):
    """A pull that did not put a checkpoint into the store."""


class Unpublished(PullError):
    """There is no such file to pull."""


class ByHand(PullError):
    """The file has to be downloaded with a browser; the message has the link."""


class DownloadError(PullError):
    """The file did not arrive."""


class BadAddress(DownloadError):
    """The address is not http or https."""


class HttpRefused(DownloadError):
    """The server answered with an error. `status` is the HTTP status."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class NotACheckpoint(DownloadError):
    """The server sent a page or a pointer instead of the file."""


class ConnectionLost(DownloadError):
    """The network failed in every attempt."""


class NoSuchFile(PullError):
    """A local file does not exist, or cannot be read."""


class WrongDigest(PullError):
    """The bytes are not the expected ones."""


class UnusableCheckpoint(PullError, CheckpointError):
    """The file cannot be read, or holds the weights of another model."""


class StoreError(PullError):
    """The store cannot be read or written."""
