"""Ed25519 keys in PEM files, as `openssl genpkey` writes them."""

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def pair(folder: Path, name: str = "key") -> tuple[Path, Path]:
    """Write a new private and public key. Returns their paths."""
    return _write(folder, name, Ed25519PrivateKey.generate())


def other_pair(folder: Path) -> tuple[Path, Path]:
    """Write keys of another algorithm."""
    return _write(folder, "ec", ec.generate_private_key(ec.SECP256R1()))


def _write(folder: Path, name: str, key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> tuple[Path, Path]:
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public
