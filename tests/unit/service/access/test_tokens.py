"""Tokens: only those of the issuer, for this audience, in time, signed by a known key with the algorithm of the key."""

import base64
import datetime
import hashlib
import hmac
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from access_keys import AUDIENCE, ISSUER, KEY, SECRET, caller, jwks, token, write_callers
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fakes import local_settings
from hypothesis import given
from hypothesis import strategies as st

from service.access.control import AccessControl
from service.access.followed_file import LOOK_SECONDS, FileInvalid
from service.access.tokens import MOST_CHARACTERS, TokenVerifier
from service.core.errors import Unauthenticated
from service.core.settings import Settings, SettingsError

HOUR = datetime.timedelta(hours=1)


def verifier(keys: Path, clock: Any = lambda: 0.0) -> TokenVerifier:
    return TokenVerifier(keys, issuer=ISSUER, audience=AUDIENCE, clock=clock)


def public_pem(private: Any) -> bytes:
    return bytes(
        private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


@pytest.fixture(scope="module")
def rsa_key() -> Any:
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture
def shared(tmp_path: Path) -> TokenVerifier:
    return verifier(jwks(SECRET, path=tmp_path / "jwks.json"))


def test_a_valid_token_names_its_caller(shared: TokenVerifier) -> None:
    assert shared.caller_name(token()) == "token:alice"
    assert shared.caller_name(token(kid="0", aud=["x", AUDIENCE])) == "token:alice"


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "ES384"])
def test_public_keys_in_a_pem_file(tmp_path: Path, rsa_key: Any, algorithm: str) -> None:
    curve = ec.SECP384R1() if algorithm == "ES384" else ec.SECP256R1()
    private = rsa_key if algorithm == "RS256" else ec.generate_private_key(curve)
    (tmp_path / "key.pem").write_bytes(public_pem(private))
    assert verifier(tmp_path / "key.pem").caller_name(token(private, algorithm=algorithm)) == "token:alice"


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"exp": datetime.datetime.now(datetime.UTC) - HOUR}, "expired"),
        ({"nbf": datetime.datetime.now(datetime.UTC) + HOUR}, "not valid yet"),
        ({"exp": None}, "missing"),
        ({"sub": None}, "missing"),
        ({"aud": None}, "missing|audience"),
        ({"iss": None}, "missing|issuer"),
        ({"aud": "another"}, "audience"),
        ({"iss": "https://issuer.test.evil"}, "issuer"),
        ({"sub": ""}, "subject"),
        ({"sub": "a\nb"}, "subject"),
        ({"sub": "ж"}, "subject"),
        ({"sub": "x" * 200}, "subject"),
        ({"exp": float("inf")}, "form is wrong"),
    ],
)
def test_a_token_with_wrong_claims_is_refused(shared: TokenVerifier, claims: dict[str, Any], why: str) -> None:
    with pytest.raises(Unauthenticated, match=why):
        shared.caller_name(token(**claims))


def test_forged_tokens_are_refused(shared: TokenVerifier, tmp_path: Path, rsa_key: Any) -> None:
    public = verifier(_written(tmp_path / "rsa.pem", public_pem(rsa_key)))
    header, payload, _ = token().split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
    forged = [
        (shared, token(b"another secret with more than 32 bytes in it")),
        (shared, token(kid="7")),
        (shared, f"{none}.{payload}."),
        (shared, f"{header}.{payload}."),
        (shared, token(algorithm="HS512", key=SECRET + SECRET)),
        (shared, token() + "x" * MOST_CHARACTERS),
        (shared, f"{base64.urlsafe_b64encode(b'[' * 4000).decode()}.a.b"),
        (shared, "a.b.c"),
        (shared, ".."),
        (public, token()),  # a shared secret where a public key is expected
        (public, _signed_with_public_key(public_pem(rsa_key))),
    ]
    for verify, text in forged:
        with pytest.raises(Unauthenticated) as raised:
            verify.caller_name(text)
        assert payload not in str(raised.value)


def _signed_with_public_key(pem: bytes) -> str:
    """The classic confusion: HS256 with the bytes of the public key as the secret. PyJWT itself refuses to make it."""

    def part(content: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

    claims = {"sub": "alice", "iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 3600}
    body = f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(claims)}"
    signature = hmac.new(pem, body.encode(), hashlib.sha256).digest()
    return f"{body}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def any_verifier(tmp_path_factory: pytest.TempPathFactory) -> TokenVerifier:
    return verifier(jwks(SECRET, path=tmp_path_factory.mktemp("keys") / "jwks.json"))


@given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=300))
def test_any_text_is_refused(any_verifier: TokenVerifier, text: str) -> None:
    with pytest.raises(Unauthenticated):
        any_verifier.caller_name(text)


def test_a_new_key_is_used_without_a_restart_and_a_broken_file_keeps_the_last_keys(tmp_path: Path) -> None:
    now = [0.0]
    path = jwks(SECRET, path=tmp_path / "jwks.json")
    following = verifier(path, lambda: now[0])
    new = b"a new shared secret with more than 32 bytes"
    jwks(SECRET, new, path=path)
    now[0] += LOOK_SECONDS
    assert following.caller_name(token(new, kid="1")) == following.caller_name(token(kid="0")) == "token:alice"
    with pytest.raises(Unauthenticated, match="kid"):
        following.caller_name(token())  # two keys, and the token names none
    path.write_text("{")
    now[0] += LOOK_SECONDS
    assert following.caller_name(token(new, kid="1")) == "token:alice"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b'{"keys": []}',
        b'{"keys": [1]}',
        b'{"keys": [{"kty": "oct", "k": "c2hvcnQ"}]}',
        b'{"keys": [{"kty": "oct", "alg": "none", "k": "c2hvcnQ"}]}',
        b'{"keys": [{"kty": "new", "k": "c2hvcnQ"}]}',
        b"-----BEGIN PUBLIC KEY-----\nc2hvcnQ=\n-----END PUBLIC KEY-----\n",
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_a_bad_key_file_is_refused_without_quoting_it(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(FileInvalid, match="jwt_keys") as raised:
        verifier(_written(tmp_path / "keys", content))
    assert "c2hvcnQ" not in str(raised.value)


def test_a_short_rsa_key_is_refused(tmp_path: Path) -> None:
    short = rsa.generate_private_key(65537, 1024)
    with pytest.raises(FileInvalid, match="2048 bits"):
        verifier(_written(tmp_path / "key.pem", public_pem(short)))


def test_tokens_and_keys_side_by_side(tmp_path: Path) -> None:
    settings = local_settings(
        jwt_keys=jwks(SECRET, path=tmp_path / "jwks.json"),
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
        callers_file=write_callers(tmp_path / "c.json", caller("alice", KEY), caller("token:alice", models=["m"])),
        anonymous="deny",
    )
    access = AccessControl.from_settings(settings, lambda: 0.0)
    by_token = access.identify([("authorization", f"Bearer {token()}")])
    by_key = access.identify([("authorization", f"Bearer {KEY}")])
    assert (by_token.name, by_token.models) == ("token:alice", {"m"})
    assert (by_key.name, by_key.models) == ("alice", None), "the owner of a token cannot be the owner of a key"
    assert access.identify([("authorization", f"Bearer {token(sub='bob')}")]).name == "token:bob"


@pytest.mark.parametrize("missing", ["jwt_keys", "jwt_issuer", "jwt_audience"])
def test_keys_issuer_and_audience_go_together(missing: str) -> None:
    stated = {"jwt_keys": Path("x"), "jwt_issuer": "i", "jwt_audience": "a"}
    with pytest.raises(ValueError, match="go together"):
        Settings(**{name: value for name, value in stated.items() if name != missing})  # type: ignore[arg-type]


def test_without_pyjwt_the_start_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "service.access.tokens", None)
    keys = jwks(SECRET, path=tmp_path / "jwks.json")
    with pytest.raises(SettingsError, match=r"mobilevision\[jwt\]"):
        AccessControl.from_settings(
            local_settings(jwt_keys=keys, jwt_issuer=ISSUER, jwt_audience=AUDIENCE), lambda: 0.0
        )
