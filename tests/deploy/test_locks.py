"""The images' locked requirements: every file by its hash, the versions of constraints.txt, nothing missing."""

import re
import subprocess
import sys

import pytest
from manifests import ROOT

DOCKER = ROOT / "deploy" / "docker"
LINE = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)
RENEW = "renew it with: make lock-images"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    return {normal(name): version for name, version in LINE.findall(text)}


@pytest.mark.parametrize("lock", ["gateway.lock", "tools.lock"])
def test_every_locked_package_has_a_hash_and_the_pinned_version(lock: str) -> None:
    text = (DOCKER / lock).read_text()
    blocks = re.split(r"\n(?=\S)", text[text.index("\n", text.rindex("#")) :].strip())
    assert len(blocks) == len(pins(text)) > 0
    for block in blocks:
        assert "--hash=sha256:" in block, block
    constraints = pins((ROOT / "constraints.txt").read_text())
    locked = pins(text)
    # The tools include cyclonedx-bom and what it needs, which nothing else of the project does.
    common = locked.keys() if lock == "gateway.lock" else locked.keys() & constraints.keys()
    assert {name: locked[name] for name in common} == {name: constraints.get(name) for name in common}, RENEW


def test_the_gateways_lock_has_all_that_the_gateway_requires() -> None:
    script = [sys.executable, str(DOCKER / "requirements.py"), "serve", "tracing", "signing"]
    printed = subprocess.run(script, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    required = {normal(re.split("[=><]", requirement)[0]) for requirement in printed}
    locked = pins((DOCKER / "gateway.lock").read_text())
    assert required <= locked.keys(), RENEW
    assert "torch" not in locked


def test_the_images_install_by_hash() -> None:
    gateway = (DOCKER / "gateway.Dockerfile").read_text()
    assert "--require-hashes -r deploy/docker/gateway.lock" in gateway
    for image in ("gateway", "torchserve"):
        assert "--require-hashes -r deploy/docker/tools.lock" in (DOCKER / f"{image}.Dockerfile").read_text()
