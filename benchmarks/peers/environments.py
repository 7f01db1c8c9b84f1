"""A virtual environment for each peer, under the cache folder. It is made once for each list of requirements.

The packages on which the amount of work depends (torch, numpy, Pillow, OpenCV, and OpenVINO where this project has it)
have the versions of this project's environment. pip chooses the versions of other dependencies. Peers with the same
requirements share an environment.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.machine import ABSENT, CACHE, package_version
from benchmarks.peers import Peer
from handlers.options import OPENVINO

INSTALL_SECONDS = 1800
_OPENVINO_PACKAGE = "openvino"
# Packages that `peers.model` imports through `handlers`, `service.preprocess.image` and `service.frontends.tasks`.
_SAME_VERSION = ("torch", "numpy", "pillow", "opencv-python-headless", "simplejpeg", _OPENVINO_PACKAGE)
_NEEDED = ("pydantic", "grpcio", "grpcio-status", "googleapis-common-protos")


class PeerUnavailable(RuntimeError):
    """A peer cannot be installed here. The message contains the output of pip."""


def python_of(peer: Peer) -> Path:
    """Path of the Python that runs a peer. Installs the peer first if needed. Raises `PeerUnavailable`."""
    versions = {name: package_version(name).partition("+")[0] for name in _SAME_VERSION}
    if peer.own_engine == OPENVINO and versions[_OPENVINO_PACKAGE] == ABSENT:
        raise PeerUnavailable(f"{peer.name} needs OpenVINO: pip install 'mobilevision[openvino]'")
    if not peer.requirements:
        return Path(sys.executable)
    same = [f"{name}=={version}" for name, version in versions.items() if version != ABSENT]
    requirements = [*same, *_NEEDED, *peer.requirements]
    folder = CACHE / "venvs" / peer.package
    stamp = folder / "installed"
    wanted = hashlib.sha256("\n".join(requirements).encode()).hexdigest()
    if not stamp.is_file() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)], peer)
        _run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *requirements], peer)
        stamp.write_text(wanted)
    return folder / "bin" / "python"


def version_of(peer: Peer, python: Path) -> str:
    """Installed version of the peer's package, or `unknown`."""
    program = f"import importlib.metadata as m; print(m.version({peer.package!r}))"
    done = subprocess.run([str(python), "-c", program], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _run(command: list[str], peer: Peer) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise PeerUnavailable(f"{peer.name}: installing took over {INSTALL_SECONDS} s") from error
    if done.returncode != 0:
        raise PeerUnavailable(f"{peer.name} cannot be installed here:\n{(done.stderr or done.stdout).strip()[-1500:]}")
