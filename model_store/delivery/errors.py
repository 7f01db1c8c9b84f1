"""Every way in which a delivery can fail, as one closed tree. Each message tells the user what to do.

    DeliveryError
    ├── BadAddress       the URL is of no kind that is supported, or cannot be used
    ├── NotThere         the store has no such object
    ├── AccessRefused    the store refuses: credentials are missing, or do not allow it
    ├── Unreachable      no answer, or it broke off; what was received is kept, and the next sync continues
    ├── RangeRefused     the store sends whole files only; a file is then fetched from its beginning
    ├── BadManifest      the manifest is no manifest of ours, or names a file that may not be delivered
    ├── WrongDigest      the store sent other bytes than the manifest says
    ├── NotPublishable   the folder holds something that a server would refuse
    └── FolderError      the folder cannot be read or written (disk full, ...)
        └── FolderInUse  another sync works in the folder

After a failed sync the folder is served as before: files are renamed into place after all of them were verified.
"""


class DeliveryError(Exception):
    """A delivery that did not come to its end."""


class BadAddress(DeliveryError):
    """The URL cannot be used."""


class NotThere(DeliveryError):
    """The store has no such object."""


class AccessRefused(DeliveryError):
    """The store refuses to read or to write."""


class Unreachable(DeliveryError):
    """The store did not answer, or the answer broke off."""


class RangeRefused(DeliveryError):
    """The store cannot send a part of a file."""


class BadManifest(DeliveryError):
    """The manifest cannot be used."""


class WrongDigest(DeliveryError):
    """The bytes are not those that the manifest names."""


class NotPublishable(DeliveryError):
    """The folder holds something that a server would refuse."""


class FolderError(DeliveryError):
    """A folder on this machine cannot be read or written."""


class FolderInUse(FolderError):
    """Another sync works in the folder."""
