"""What is generated and committed is what the sources say today."""

import subprocess
import sys
from pathlib import Path

import pytest

from model_store.zoo.__main__ import markdown as models_markdown
from service.core.settings.__main__ import markdown

ROOT = Path(__file__).parents[2]


def test_the_settings_page_is_current() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == markdown(), "run: make docs"


def test_the_models_page_is_current() -> None:
    assert (ROOT / "docs" / "models.md").read_text() == models_markdown(), "run: make docs"


@pytest.mark.parametrize(
    "proto", ["mobilevision/v1/vision", "mobilevision/v1/recording", "torchserve/inference", "torchserve/management"]
)
def test_the_stubs_are_current(proto: str, tmp_path: Path) -> None:
    out = [f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python")]
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-Iservice/pb={ROOT}/proto",
        f"-I{ROOT}/proto",
        *out,
        f"{ROOT}/proto/{proto}.proto",
    ]
    subprocess.run(command, check=True, cwd=ROOT)
    for suffix in ("_pb2.py", "_pb2_grpc.py"):
        name = f"service/pb/{proto}{suffix}"
        assert (tmp_path / name).read_text() == (ROOT / name).read_text(), "run: make proto"
