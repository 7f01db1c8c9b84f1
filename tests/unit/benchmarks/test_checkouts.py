"""Two checkouts of the project under one benchmark: each server runs its own code and its own archives."""

import json
import sys
from pathlib import Path

import archive_files
import pytest

from benchmarks.limit import Shape
from benchmarks.options import check_checkout
from benchmarks.serving import candidates
from benchmarks.systems import BEFORE, OURS, Setup, running

# A server that answers every call with its working folder, the file of its package, its archives and its arguments.
SERVER = """
import argparse, json, pathlib, time
from concurrent import futures
import grpc
import service

parser = argparse.ArgumentParser()
parser.add_argument("words", nargs="*")
for name in ("--archives", "--grpc-port", "--http-port", "--ready-file"):
    parser.add_argument(name)
options = parser.parse_args()
answer = json.dumps([str(pathlib.Path.cwd()), service.__file__, options.archives, options.words]).encode()

class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: answer)

server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[Handler()])
port = server.add_insecure_port("127.0.0.1:0")
server.start()
ready = pathlib.Path(options.ready_file)
ready.with_suffix(".part").write_text(json.dumps({"grpc": f"127.0.0.1:{port}", "http": "127.0.0.1:1"}))
ready.with_suffix(".part").replace(ready)
server.wait_for_termination()
"""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "here" / "toy.mar"
    path.parent.mkdir()
    archive_files.write(path.parent, archive_files.card_of("toy"))
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "older"
    for path, content in (
        ("service/__init__.py", ""),
        ("service/__main__.py", SERVER),
        ("model_store/archives/toy.mar", ""),
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    return folder


def test_the_server_before_runs_the_code_and_the_archives_of_its_checkout(checkout: Path, archive: Path) -> None:
    setup = Setup(Shape(1, 1), checkout=checkout)
    with running(BEFORE, [archive], setup, b"picture") as server:
        answer = server.targets[0].call()
    folder, module, archives, words = json.loads(answer)
    assert folder == str(checkout)
    assert module == str(checkout / "service" / "__init__.py")
    assert archives == str(checkout / "model_store" / "archives")
    assert words == ["serve", "toy"]
    assert server.name == BEFORE


def test_both_checkouts_are_set_up_alike() -> None:
    ours = candidates(OURS, quick=False, settings=["max_queue=9"])
    before = candidates(BEFORE, quick=False, settings=["max_queue=9"], checkout=Path("older"))
    assert [setup.checkout for setup in ours] == [None] * len(ours)
    assert [setup.checkout for setup in before] == [Path("older")] * len(ours)
    assert [(s.shape, s.settings, s.max_batch) for s in before] == [(s.shape, s.settings, s.max_batch) for s in ours]


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no service/__main__\.py"):
        check_checkout(tmp_path, ["toy"])


def test_a_checkout_without_the_archive_is_refused_with_the_command_that_builds_it(checkout: Path) -> None:
    check_checkout(checkout, ["toy"])
    with pytest.raises(
        SystemExit, match=f"cd {checkout} && PYTHONPATH=. {sys.executable} -m service models build other"
    ):
        check_checkout(checkout, ["toy", "other"])
