"""Tokens (JWT): a token in, the name of its caller out. Everything is checked offline, with keys from a file.

The file is a JWKS, or a PEM file with one public key. The algorithm belongs to the key, never to the token: a key
without `alg` is RS256, ES256 (ES384, ES512 by its curve), EdDSA or HS256. So a token cannot choose a weaker algorithm,
or use a public key as a shared secret. Signature, issuer, audience and expiry are required. Needs PyJWT (extra `jwt`).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from service.access.callers import TOKEN, is_safe_name
from service.access.followed_file import FileInvalid, FollowedFile
from service.core.errors import Unauthenticated

MOST_CHARACTERS = 8192  # of a token; gRPC refuses more than 16 KiB of metadata
MOST_KEYS = 100
LEEWAY_SECONDS = 30.0  # how much the clocks of the issuer and of this machine may differ
LEAST_SECRET_BYTES = 32  # of a shared secret; RFC 7518 asks for the length of the hash
LEAST_RSA_BITS = 2048
ALGORITHMS = frozenset([f"{kind}{bits}" for kind in ("RS", "PS", "ES", "HS") for bits in (256, 384, 512)] + ["EdDSA"])

# What the caller is told. The texts of PyJWT may quote the token.
_REASONS: Mapping[type[Exception], str] = {
    jwt.ExpiredSignatureError: "it has expired",
    jwt.ImmatureSignatureError: "it is not valid yet",
    jwt.InvalidAudienceError: "it is for another audience",
    jwt.InvalidIssuerError: "it has another issuer",
    jwt.MissingRequiredClaimError: "one of exp, iss, aud and sub is missing",
}


class TokenVerifier:
    """Verifies tokens of one issuer for one audience. The constructor raises `FileInvalid`."""

    def __init__(self, keys: Path, *, issuer: str, audience: str, clock: Callable[[], float]) -> None:
        self._keys = FollowedFile(keys, load=_keys_of, clock=clock)
        self._issuer = issuer
        self._audience = audience

    def caller_name(self, token: str) -> str:
        """Return `token:` and the subject of a token. Raises `Unauthenticated`."""
        if len(token) > MOST_CHARACTERS:
            raise Unauthenticated(f"the token has more than {MOST_CHARACTERS} characters")
        try:
            key = self._key_for(jwt.get_unverified_header(token).get("kid"))
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm_name],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
            name = f"{TOKEN}{claims['sub']}"
        except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
            why = _REASONS.get(type(error), "its signature or its form is wrong")
            raise Unauthenticated(f"the token is not valid: {why}") from None
        if name == TOKEN or not is_safe_name(name):
            raise Unauthenticated("the token is not valid: its subject is empty, too long, or not printable ASCII")
        return name

    def _key_for(self, kid: object) -> jwt.PyJWK:
        keys = self._keys.value()
        if kid is None and len(keys) == 1:
            return keys[0]
        found = [key for key in keys if kid is not None and key.key_id == kid]
        if not found:
            raise Unauthenticated("the token is not valid: the server has no key with its key id (kid)")
        return found[0]


def _keys_of(raw: bytes) -> tuple[jwt.PyJWK, ...]:
    try:
        stated = [_from_pem(raw)] if raw.lstrip().startswith(b"-----") else json.loads(raw)["keys"]
        keys = tuple(jwt.PyJWK(each) for each in stated)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError, RecursionError, NotImplementedError):
        # Without the text of the error, which quotes the keys.
        raise FileInvalid("jwt_keys is neither a JWKS nor a PEM file with one public key (RSA or EC)") from None
    if not 0 < len(keys) <= MOST_KEYS:
        raise FileInvalid(f"jwt_keys has {len(keys)} keys; 1 to {MOST_KEYS} are allowed")
    for number, key in enumerate(keys, 1):
        _check_strength(number, key)
    return keys


def _from_pem(raw: bytes) -> dict[str, object]:
    public = load_pem_public_key(raw)
    if isinstance(public, rsa.RSAPublicKey):
        return dict(RSAAlgorithm.to_jwk(public, as_dict=True))
    if isinstance(public, ec.EllipticCurvePublicKey):
        return dict(ECAlgorithm.to_jwk(public, as_dict=True))
    raise TypeError("the PEM file has a key of another kind")


def _check_strength(number: int, key: jwt.PyJWK) -> None:
    """Raises `FileInvalid` for an unknown algorithm, or a key that is too short for it."""
    if key.algorithm_name not in ALGORITHMS:
        raise FileInvalid(f"jwt_keys: key {number} has an algorithm that is not one of {', '.join(sorted(ALGORITHMS))}")
    if isinstance(key.key, bytes) and len(key.key) < LEAST_SECRET_BYTES:
        raise FileInvalid(f"jwt_keys: the secret of key {number} has fewer than {LEAST_SECRET_BYTES} bytes")
    if isinstance(key.key, rsa.RSAPublicKey | rsa.RSAPrivateKey) and key.key.key_size < LEAST_RSA_BITS:
        raise FileInvalid(f"jwt_keys: RSA key {number} has fewer than {LEAST_RSA_BITS} bits")
