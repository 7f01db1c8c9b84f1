"""Who made an archive: an Ed25519 signature of its list of digests, kept in the entry `MAR-INF/SIGNATURE.json`.

In: the digests and a key in PEM. Out: the entry, or the number of the key that it was made with. Needs `cryptography`
(extra `signing`), and never the network. A worker does not import this module.
"""

import base64
import json
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ALGORITHM = "Ed25519"
_PURPOSE = b"mobilevision archive digests, schema 1\n"  # a signature made for anything else is none of an archive
_END = b"-----END PUBLIC KEY-----"


class KeyRefused(ValueError):
    """A key file cannot be used. The message is one line that says what to do."""


class SignatureRefused(ValueError):
    """A signature is missing, damaged, or of no trusted key. The message is the end of a line."""


def private_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key, PKCS8 in PEM without a passphrase. Raises `KeyRefused`."""
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyRefused(f"{path} is no private key in PEM without a passphrase; {_how_to_make()}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyRefused(f"{path} is no {ALGORITHM} key; {_how_to_make()}")
    return key


def public_keys(path: Path) -> tuple[Ed25519PublicKey, ...]:
    """Read the public keys of a file: one or several in PEM, one after the other. Raises `KeyRefused`."""
    parts = _read(path).split(_END)[:-1]
    keys = []
    for part in parts:
        try:
            key = serialization.load_pem_public_key(part.strip() + b"\n" + _END + b"\n")
        except (ValueError, UnsupportedAlgorithm) as error:
            raise KeyRefused(f"{path} holds something that is no public key in PEM; {_how_to_publish()}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise KeyRefused(f"{path} holds a key that is no {ALGORITHM} key; {_how_to_make()}")
        keys.append(key)
    if not keys:
        raise KeyRefused(f"{path} holds no public key in PEM; {_how_to_publish()}")
    return tuple(keys)


def sign(digests: bytes, key: Ed25519PrivateKey) -> bytes:
    """The entry of a signature of these digests."""
    signature = base64.b64encode(key.sign(_PURPOSE + digests)).decode()
    return (json.dumps({"algorithm": ALGORITHM, "signature": signature}, indent=2) + "\n").encode()


def verify(digests: bytes, entry: bytes | None, keys: tuple[Ed25519PublicKey, ...]) -> int:
    """The index in `keys` of the key that signed these digests. Raises `SignatureRefused`."""
    if entry is None:
        raise SignatureRefused("it is not signed; sign it: mobilevision models sign")
    try:
        document = json.loads(entry)
        algorithm, signature = document["algorithm"], base64.b64decode(document["signature"], validate=True)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SignatureRefused("its signature cannot be read; sign it again: mobilevision models sign") from error
    if algorithm != ALGORITHM:
        raise SignatureRefused(f"its signature is not of {ALGORITHM}; sign it again: mobilevision models sign")
    for index, key in enumerate(keys):
        try:
            key.verify(signature, _PURPOSE + digests)
        except InvalidSignature:
            continue
        return index
    raise SignatureRefused("its signature is of no trusted key; sign it with one of them, or trust its key")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyRefused(f"the key file {path} cannot be read: {error.strerror or error}") from error


def _how_to_make() -> str:
    return "make one: openssl genpkey -algorithm ed25519 -out KEY.pem"


def _how_to_publish() -> str:
    return "make it from a private key: openssl pkey -in KEY.pem -pubout -out PUBLIC.pem"
