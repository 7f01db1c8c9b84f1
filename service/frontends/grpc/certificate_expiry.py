"""When the certificates of a PEM file expire.

In: a PEM file with one or more X.509 certificates. Out: the Unix time at which the first of them expires. Reads only
the validity (RFC 5280, section 4.1.2.5), and follows the file when it is renewed. Never checks a signature.
"""

import math
import re
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from service.core.reloaded_file import ReloadedFile

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_VERSION = 0xA0  # tag of the optional first field
_TIME_FORMATS = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}  # UTCTime, GeneralizedTime


def expiry_of(file: Path) -> Callable[[], float]:
    """Return a function that reads when the first certificate of `file` expires, in Unix seconds.

    While the file cannot be read, it returns the last value that was read, and NaN before the first one.
    """
    files = ReloadedFile(file, load=lambda: not_after(file.read_text()))

    def read() -> float:
        try:
            return files.value()
        except (OSError, ValueError):
            return math.nan if files.last is None else files.last

    return read


def not_after(pem: str) -> float:
    """Return the earliest end of validity of the certificates, in Unix seconds. Raises `ValueError`."""
    found = [_not_after(ssl.PEM_cert_to_DER_cert(block)) for block in _PEM.findall(pem)]
    if not found:
        raise ValueError("the file has no certificate in PEM format")
    return min(found)


def _not_after(der: bytes) -> float:
    _, certificate, _ = _element(der, 0)
    _, at, _ = _element(der, certificate)
    tag, _, end = _element(der, at)
    if tag == _VERSION:
        at = end
    for _ in ("serialNumber", "signature", "issuer"):
        _, _, at = _element(der, at)
    _, at, _ = _element(der, at)  # validity
    _, _, at = _element(der, at)  # notBefore
    tag, start, end = _element(der, at)
    if tag not in _TIME_FORMATS:
        raise ValueError(f"the end of validity has the tag {tag}")
    return datetime.strptime(der[start:end].decode("ascii"), _TIME_FORMATS[tag]).replace(tzinfo=UTC).timestamp()


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """The tag of the element at offset `at`, and where its content starts and ends. Raises `ValueError`."""
    if at + 2 > len(der):
        raise ValueError("the certificate is cut off")
    tag, length, start = der[at], der[at + 1], at + 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(der[at + 2 : start])
    if start + length > len(der):
        raise ValueError("the certificate is cut off")
    return tag, start, start + length
