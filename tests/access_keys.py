"""Callers for tests: a key, its callers file, client certificates, tokens."""

import base64
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from service.access import api_keys

KEY = "mv_the-key-of-the-tests"
OTHER_KEY = "mv_another-key-of-the-tests"
ISSUER, AUDIENCE = "https://issuer.test", "mobilevision"
SECRET = b"a shared secret of the tests, of 32 bytes or more"


def caller(name: str, key: str | None = None, **fields: Any) -> dict[str, Any]:
    """An entry of a callers file."""
    keys = {} if key is None else {"sha256": [api_keys.digest(key).hex()]}
    return {"name": name, **keys, **fields}


def write_callers(path: Path, *callers: Mapping[str, Any]) -> Path:
    """Write a callers file in JSON, as a whole."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps({"callers": callers}))
    return temporary.replace(path)


def jwks(*secrets: bytes, path: Path) -> Path:
    """Write a JWKS file with shared secrets. Their key ids are 0, 1, ..."""
    keys = [
        {"kty": "oct", "alg": "HS256", "kid": str(number), "k": base64.urlsafe_b64encode(secret).decode().rstrip("=")}
        for number, secret in enumerate(secrets)
    ]
    path.write_text(json.dumps({"keys": keys}))
    return path


def token(key: Any = SECRET, *, algorithm: str = "HS256", kid: str | None = None, **claims: Any) -> str:
    """A token of the subject `alice` that is valid for an hour. A claim that is None is left out."""
    now = datetime.datetime.now(datetime.UTC)
    stated = {"sub": "alice", "iss": ISSUER, "aud": AUDIENCE, "exp": now + datetime.timedelta(hours=1)} | claims
    present = {name: value for name, value in stated.items() if value is not None}
    return jwt.encode(present, key, algorithm=algorithm, headers=None if kid is None else {"kid": kid})


class Authority:
    """A certificate authority for servers and clients of a test."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("authority of the tests")
        self._certificate = self._signed(self._name, self._key.public_key(), authority=True, alternative_names=())
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, common_name: str, *alternative_names: x509.GeneralName) -> tuple[bytes, bytes]:
        """The key and the certificate of somebody, in PEM. An empty common name is left out."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._signed(
            _name(common_name), key.public_key(), authority=False, alternative_names=alternative_names
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return private, certificate.public_bytes(serialization.Encoding.PEM)

    def _signed(
        self, subject: x509.Name, key: Any, *, authority: bool, alternative_names: tuple[x509.GeneralName, ...]
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if alternative_names:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternative_names), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])
