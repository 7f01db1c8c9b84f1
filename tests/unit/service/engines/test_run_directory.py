"""The files that TorchServe reads: any path works or is refused."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import archive_files
import pytest

from service.engines.torchserve.config import Ports, TorchServeConfig, TorchServeFailed, TorchServeModel
from service.engines.torchserve.run_directory import prepare, write_properties


def config(folder: Path) -> TorchServeConfig:
    folder.mkdir(exist_ok=True)
    archive = archive_files.write(folder)
    models = (TorchServeModel("toy_classify", archive),)
    return TorchServeConfig(models=models, environment={}, copy_archives=False)


def value(run: Path, name: str) -> str:
    """A value of config.properties, read as `java.util.Properties` does."""
    text = (run / "config.properties").read_bytes().decode("latin-1")
    line = next(line for line in text.splitlines() if line.startswith(f"{name}="))
    plain = line.partition("=")[2].lstrip(" ")
    units = plain.encode().decode("unicode_escape")
    return units.encode("utf-16", "surrogatepass").decode("utf-16")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path leaves room for the names of Unix sockets; pytest's own folders are deep."""
    with tempfile.TemporaryDirectory(prefix="mv-") as folder:
        yield Path(folder)


@pytest.mark.parametrize("name", ["plain", "with spaces", "ä日本", "😀", "a&b<c>\"d'", "back\\slash", "colon:=#!"])
def test_java_reads_every_path_back(tmp_path: Path, short_path: Path, name: str) -> None:
    archives, run = tmp_path / name, short_path / f"run {name}"
    run.mkdir()
    prepare(run, config(archives))
    write_properties(run, config(archives), Ports(1, 2))
    assert value(run, "model_store") == str(archives.resolve())
    assert value(run, "inference_address") == f"unix:{run}/inference"
    files = ElementTree.parse(run / "log4j2.xml").iter("RollingFile")
    assert [file.attrib["fileName"] for file in files] == [f"{run}/logs/server.log", f"{run}/logs/workers.log"]


@pytest.mark.parametrize(
    ("name", "message"), [("日" * 30, "too deep"), ("50%", "%"), ("a$b", "%"), ("a\nb", "control")]
)
def test_a_path_that_cannot_work_is_refused_in_one_line(tmp_path: Path, name: str, message: str) -> None:
    run = Path("/tmp") / name
    with pytest.raises(TorchServeFailed, match=message) as raised:
        prepare(run, config(tmp_path / "archives"))
    assert "\n" not in str(raised.value)
    shutil.rmtree(run, ignore_errors=True)
