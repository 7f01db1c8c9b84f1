"""Signing archives and asking who signed them."""

import subprocess
from pathlib import Path

import archive_files
import pytest
from archive_files import CODE_ENTRY, rezip
from click.testing import Result
from signing_keys import other_pair, pair
from typer.testing import CliRunner

from handlers.contract import archive_file, signature
from model_store.cli.commands import models_app


def run(*arguments: object) -> Result:
    return CliRunner().invoke(models_app(), [*map(str, arguments)])


def test_a_signed_archive_is_known_by_its_key(tmp_path: Path) -> None:
    path = archive_files.write(tmp_path)
    (private, public), (_, other) = pair(tmp_path), pair(tmp_path, "other")
    assert run("sign", path, "--key", private).exit_code == 0
    done = run("verify-signature", path, "--key", public)
    assert (done.exit_code, "signed by key 1 of" in done.output) == (0, True)
    both = tmp_path / "both.pem"
    both.write_bytes(other.read_bytes() + b"# the build machine\n" + public.read_bytes())
    assert "signed by key 2 of" in run("verify-signature", path, "--key", both).output
    refused = run("verify-signature", path, "--key", other)
    assert (refused.exit_code, "of no trusted key" in refused.stderr) == (1, True)
    assert refused.stderr.count("\n") == 1
    assert path.stat().st_mode & 0o777 == 0o644


def test_signing_twice_gives_the_same_bytes_and_another_key_replaces_the_first(tmp_path: Path) -> None:
    path = archive_files.write(tmp_path)
    (private, _), (other, other_public) = pair(tmp_path), pair(tmp_path, "other")
    run("sign", path, "--key", private)
    first = path.read_bytes()
    run("sign", path, "--key", private)
    assert path.read_bytes() == first
    run("sign", path, "--key", other)
    assert run("verify-signature", path, "--key", other_public).exit_code == 0


def test_keys_of_openssl_are_read(tmp_path: Path) -> None:
    private, public = tmp_path / "key.pem", tmp_path / "public.pem"
    try:
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
        subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    path = archive_files.write(tmp_path)
    assert run("sign", path, "--key", private).exit_code == 0
    assert run("verify-signature", path, "--key", public).exit_code == 0


def test_an_archive_without_signature_or_changed_after_it_is_refused(tmp_path: Path) -> None:
    path = archive_files.write(tmp_path)
    private, public = pair(tmp_path)
    assert "is not signed" in run("verify-signature", path, "--key", public).stderr
    run("sign", path, "--key", private)
    entries = archive_files.entries() | {CODE_ENTRY: b"import os\n"}
    stolen = archive_file.check(path).signature
    path.write_bytes(archive_file.pack(entries, stolen))  # whole, with the signature of the archive before
    assert "of no trusted key" in run("verify-signature", path, "--key", public).stderr
    path.write_bytes(rezip(path.read_bytes(), drop=CODE_ENTRY))
    assert f"'{CODE_ENTRY}'" in run("verify-signature", path, "--key", public).stderr
    assert run("sign", path, "--key", private).exit_code == 1


@pytest.mark.parametrize("entry", [b"", b"[]", b"{}", b'{"algorithm": "Ed25519", "signature": "?"}', b"[" * 100_000])
def test_a_broken_signature_is_told(entry: bytes, tmp_path: Path) -> None:
    keys = signature.public_keys(pair(tmp_path)[1])
    with pytest.raises(signature.SignatureRefused, match="cannot be read"):
        signature.verify(b"digests", entry, keys)
    with pytest.raises(signature.SignatureRefused, match="not of Ed25519"):
        signature.verify(b"digests", b'{"algorithm": "none", "signature": ""}', keys)


@pytest.mark.parametrize(
    "content", ["", "nonsense", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", None]
)
def test_a_file_that_is_no_key_is_told_in_one_line(content: str | None, tmp_path: Path) -> None:
    path, key = archive_files.write(tmp_path), tmp_path / "some.pem"
    if content is not None:
        key.write_text(content)
    for command in ("sign", "verify-signature"):
        done = run(command, path, "--key", key)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert "some.pem" in done.stderr


def test_keys_of_another_kind_are_told(tmp_path: Path) -> None:
    path = archive_files.write(tmp_path)
    private, public = other_pair(tmp_path)
    assert "no Ed25519 key" in run("sign", path, "--key", private).stderr
    assert "no Ed25519 key" in run("verify-signature", path, "--key", public).stderr
    mine = pair(tmp_path)[0]
    assert "no public key" in run("verify-signature", path, "--key", mine).stderr
