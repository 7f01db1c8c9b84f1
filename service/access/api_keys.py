"""API keys: new ones, and the digests by which the server knows them.

A key has 256 random bits, so it cannot be guessed, and its digest cannot be turned back by trying keys. A plain SHA-256
is therefore right. The slow hashes for passwords (scrypt, Argon2) protect secrets that people choose. Here they would
protect nothing, and would cost every call milliseconds.

In: a key. Out: its digest. Keys are never kept, logged or put into an error.
"""

import hashlib
import secrets

PREFIX = "mv_"  # so that scanners of repositories and logs can find keys
RANDOM_BYTES = 32
MOST_CHARACTERS = 256  # longer texts are no keys


def new_key() -> str:
    """Return a new key: `PREFIX` and 43 characters that need no quotes in a shell or a header."""
    return PREFIX + secrets.token_urlsafe(RANDOM_BYTES)


def digest(key: str) -> bytes:
    """Return the SHA-256 of a key, 32 bytes."""
    return hashlib.sha256(key.encode()).digest()
