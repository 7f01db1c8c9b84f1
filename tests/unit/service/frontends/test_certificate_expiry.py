"""When TLS files expire: certificates of every form, chains, renewals, and files that are none."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from service.frontends.grpc.certificate_expiry import expiry_of, not_after

START = datetime(2020, 1, 1, tzinfo=UTC)


def certificate(end: datetime, common_name: str = "localhost") -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(START)
        .not_valid_after(end)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize(
    "end",
    [
        datetime(2026, 11, 28, 17, 30, 1, tzinfo=UTC),
        datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC),  # the last UTCTime
        datetime(2050, 1, 1, tzinfo=UTC),  # GeneralizedTime
        datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),  # no expiry, as RFC 5280 writes it
    ],
)
def test_the_end_of_validity_is_read(end: datetime) -> None:
    assert not_after(certificate(end, common_name="n" * 60)) == end.timestamp()


def test_the_first_of_a_chain_counts() -> None:
    near, far = START + timedelta(days=3000), START + timedelta(days=4000)
    text = f"a comment\n{certificate(far)}\nanother\n{certificate(near)}{certificate(far)}"
    assert not_after(text) == near.timestamp()


def test_a_renewed_file_is_followed_and_a_lost_one_keeps_its_value(tmp_path: Path) -> None:
    file = tmp_path / "tls.crt"
    read = expiry_of(file)
    assert math.isnan(read())
    file.write_text(certificate(START + timedelta(days=1)))
    assert read() == (START + timedelta(days=1)).timestamp()
    renewed = tmp_path / "renewed"
    renewed.write_text(certificate(START + timedelta(days=90)))
    renewed.replace(file)
    assert read() == (START + timedelta(days=90)).timestamp()
    file.unlink()
    assert read() == (START + timedelta(days=90)).timestamp()


def test_what_is_no_certificate_is_refused() -> None:
    whole = certificate(START + timedelta(days=1))
    der = x509.load_pem_x509_certificate(whole.encode()).public_bytes(serialization.Encoding.DER)
    with pytest.raises(ValueError, match="no certificate"):
        not_after("a key, perhaps")
    import ssl  # noqa: PLC0415 - writes PEM of any bytes

    for length in range(1, len(der), 7):
        with pytest.raises(ValueError):  # noqa: PT011 - the message depends on the place
            not_after(ssl.DER_cert_to_PEM_cert(der[:length]))
