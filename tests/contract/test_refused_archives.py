"""`mobilevision serve` as a process, with archives that it must not load: one line, and TorchServe never starts."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import archive_files
import pytest
from archive_files import CODE_ENTRY, rezip
from signing_keys import pair


def serve(folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the server until it ends. Nothing may be left in its run directory."""
    with tempfile.TemporaryDirectory(prefix="mv-") as run:  # a short path: it is to hold Unix sockets
        settings |= {"MOBILEVISION_RUN_DIR": run, "MOBILEVISION_GRPC_PORT": "0", "MOBILEVISION_HTTP_PORT": "0"}
        command = [sys.executable, "-m", "service", "serve", "--archives", str(folder / "archives")]
        ended = subprocess.run(
            command, env=os.environ | settings, capture_output=True, text=True, timeout=120, check=False
        )
        assert list(Path(run).iterdir()) == []
    return ended


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "archives").mkdir()
    return archive_files.write(tmp_path / "archives")


def test_an_unsigned_archive_is_refused_where_signatures_are_required(archive: Path, tmp_path: Path) -> None:
    ended = serve(tmp_path, MOBILEVISION_REQUIRE_SIGNATURE=str(pair(tmp_path)[1]))
    error = ended.stderr.splitlines()[-1]
    assert (ended.returncode, error) == (1, f"error: {archive}: it is not signed; sign it: mobilevision models sign")
    assert "Traceback" not in ended.stderr


def test_changed_code_is_refused_without_any_setting(archive: Path, tmp_path: Path) -> None:
    changed = rezip(
        archive.read_bytes(), lambda info, data: (info, b"import os\n" if info.filename == CODE_ENTRY else data)
    )
    archive.write_bytes(changed)
    ended = serve(tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(f"error: {archive}: entry '{CODE_ENTRY}' has sha256")
