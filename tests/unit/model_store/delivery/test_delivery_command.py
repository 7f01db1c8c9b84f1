"""`mobilevision models publish` and `sync`: what is printed, the exit codes, and Ctrl-C."""

import builtins
import hashlib
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import archive_files
import pytest
from delivered import DELIVERED, delivered
from file_site import Site
from typer.testing import CliRunner

from model_store.cli import commands, delivery
from model_store.delivery.folder import Folder


def run(*arguments: str | Path) -> Any:
    return CliRunner(env={"COLUMNS": "300", "TERM": "dumb"}).invoke(
        commands.models_app(), [str(part) for part in arguments]
    )


def test_a_folder_travels_by_a_store(source: Path, target: Folder, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/published"
    sent = run("publish", source, url)
    assert sent.exit_code == 0, sent.output
    assert sent.stdout.endswith(f"{url}: 7 files, 7 sent\n")
    assert "sending 7 files, 0.0 MB" in sent.stderr
    fetched = run("sync", url, "--to", target.path)
    assert fetched.exit_code == 0, fetched.output
    assert "cups.mar: 0.0 MB fetched\n" in fetched.stdout
    assert fetched.stdout.endswith(f"{target.path}: 7 files as in {url}, 7 of them fetched, 0 others removed\n")
    assert set(delivered(target)) == DELIVERED
    archive_files.write(source, archive_files.card_of("cups", "2.0"))
    assert "note: cups.mar had other content before" in run("publish", source, url).stdout
    (source / "rollout.json").unlink()
    run("publish", source, url)
    assert "rollout.json: removed" in run("sync", url, "--to", target.path).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("sync", "ftp://host/models"), 2, "use s3://, gs://, az://, https://"),
        (("sync", "file:///nowhere/models"), 1, "publish the folder first"),
        (("publish", "nowhere", "file:///nowhere/models"), 1, "No such file"),
        (("sync", "file:///models", "--watch", "0"), 2, "--watch"),
    ],
)
def test_an_error_is_one_line(arguments: tuple[str, ...], code: int, message: str, tmp_path: Path) -> None:
    arguments = tuple(part.replace("/nowhere", str(tmp_path / "nowhere")) for part in arguments)
    done = run(*arguments)
    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert "Traceback" not in done.output


def test_without_the_package_of_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "obstore":
            raise ModuleNotFoundError("No module named 'obstore'", name="obstore")
        return real(name, *arguments, **options)

    for name in [name for name in sys.modules if name.startswith("model_store.delivery.remote")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("model_store.delivery.remote", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    done = run("sync", f"file://{tmp_path}")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "pip install 'mobilevision[store]'" in done.stderr


def test_watching_goes_on_after_a_failure(
    source: Path, target: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/published"
    run("publish", source, url)
    manifest = tmp_path / "published" / "manifest.json"
    content = manifest.read_bytes()
    looks: list[float] = []

    async def between(seconds: float) -> None:
        looks.append(seconds)
        manifest.write_bytes(b"{" if len(looks) == 2 else content)
        if len(looks) == 3:
            (source / "rollout.json").unlink()
        if len(looks) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(delivery.asyncio, "sleep", between)
    done = run("sync", url, "--to", target.path, "--watch", "60")
    assert done.exit_code == delivery.INTERRUPTED
    assert all(54 <= seconds <= 66 for seconds in looks)
    assert done.stdout.count("files as in") == 1  # an unchanged manifest is not told again
    assert done.stderr.count("error:") == 2  # the broken manifest, and the end
    assert "run the same command to go on" in done.stderr


def test_progress_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    lines = delivery.Lines("fetching", clock=lambda: now[0])
    lines.begin(2, 30_000_000)
    for _ in range(10):
        now[0] += 3
        lines.advance("a.mar", 1_500_000)
    assert capsys.readouterr().err.splitlines() == [
        "fetching 2 files, 30.0 MB",
        "a.mar: 6.0 of 30.0 MB",
        "a.mar: 12.0 of 30.0 MB",
    ]
    lines.begin(0, 0)
    assert capsys.readouterr().err == ""


def test_ctrl_c_keeps_what_was_received(target: Folder, tmp_path: Path) -> None:
    big, card = bytes(range(256)) * 2**13, b"{}"  # 2 MiB
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in (("a.mar", big), ("a.card.json", card))}
    entries = [
        {"name": "a.mar", "size_bytes": len(big), "sha256": digests["a.mar"], "version": "1.0"},
        {"name": "a.card.json", "size_bytes": len(card), "sha256": digests["a.card.json"], "version": ""},
    ]
    with Site() as site:
        thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            site.files = {f"files/{digests['a.mar']}": big, f"files/{digests['a.card.json']}": card}
            site.files["manifest.json"] = json.dumps({"schema_version": 1, "files": entries}).encode()
            site.drop_after, site.hold = [len(big), len(big) // 2], threading.Event()
            command = [sys.executable, "-m", "mobilevision", "models", "sync", site.url("").rstrip("/")]
            command += ["--to", str(target.path)]
            # `env`: where tests run in the background of a script, SIGINT is ignored, and children inherit that.
            command = ["env", "--default-signal=INT", *command]
            process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            part = target.path / f".sync-{digests['a.mar'][:16]}-a.mar.part"
            until = time.monotonic() + 120
            while not (part.exists() and part.stat().st_size) and time.monotonic() < until:
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=120)
            assert process.returncode == delivery.INTERRUPTED, told
            assert told.splitlines()[-1] == ("error: stopped; what was received is kept; run the same command to go on")
            assert 0 < part.stat().st_size < len(big)
            assert not (target.path / "a.mar").exists()
            site.hold.set()
            site.ranges.clear()
            again = run("sync", site.url("").rstrip("/"), "--to", target.path)
            assert again.exit_code == 0, again.output
            assert site.ranges[1] not in {None, "bytes=0-"}
            assert (target.path / "a.mar").read_bytes() == big
        finally:
            site.hold = None
            site.shutdown()
            thread.join()
