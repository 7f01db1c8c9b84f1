"""Certificates for a server under test, made by openssl: one authority, and server certificates that it signs."""

import subprocess
from pathlib import Path


class Authority:
    """A certificate authority in a folder. Raises `subprocess.CalledProcessError`, and OSError without openssl."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.certificate = folder / "authority.pem"
        self._key = folder / "authority.key"
        _openssl(
            "req",
            "-x509",
            *_NEW_KEY,
            "-subj",
            "/CN=authority",
            "-days",
            "1",
            "-keyout",
            self._key,
            "-out",
            self.certificate,
        )

    def sign(self, serial: int) -> tuple[bytes, bytes]:
        """A new certificate for localhost and its key, both PEM."""
        request, key, certificate = (self._folder / f"{serial}.{kind}" for kind in ("csr", "key", "pem"))
        extensions = self._folder / "extensions"
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        _openssl("req", *_NEW_KEY, "-subj", "/CN=localhost", "-keyout", key, "-out", request)
        signing = ("-CA", self.certificate, "-CAkey", self._key, "-set_serial", str(serial), "-days", "1")
        _openssl("x509", "-req", "-in", request, *signing, "-extfile", extensions, "-out", certificate)
        return certificate.read_bytes(), key.read_bytes()


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
