"""Networks in OpenVINO against TorchScript in float32: raw outputs, whole answers, and what a worker accepts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.test_module_contract import FIRST, OTHER_HEADS, assert_same, run, small

from handlers import openvino_network, probe
from handlers import torchscript as engine
from handlers.compiled_cache import CompiledCache
from handlers.hardware import cpu_has_bfloat16
from handlers.options import LEAST_AGREEMENT
from model_store import zoo
from model_store.build import agreement, assemble, parity, torchscript
from model_store.demo import checkpoints
from model_store.networks.heads.registry import head_of
from model_store.weights import layouts
from model_store.weights import load as weights

# TorchScript is what TorchServe loads; torch announces its successor on every call.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

FLOAT32 = 1e-4  # of the spread: ten times what was measured
DTYPES = [
    torch.float32,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(not cpu_has_bfloat16(), reason="bfloat16 is not in this CPU's hardware"),
    ),
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _param(entry: zoo.ModelSpec) -> Any:
    # The sample of `make test`, with small pictures: the models with committed weights, one of each task, and the first
    # model of each other head.
    in_the_gate = entry.committed or entry in OTHER_HEADS
    return pytest.param(entry, id=entry.name, marks=() if in_the_gate else pytest.mark.exhaustive)


@pytest.fixture(scope="module", params=[_param(entry) for entry in zoo.ENTRIES])
def entry(request: pytest.FixtureRequest) -> zoo.ModelSpec:
    found: zoo.ModelSpec = request.param
    usual = found in FIRST.values() or found.committed or found.head.name == "ssdlite"
    return found if usual else small(found)


@pytest.fixture(scope="module")
def module_file(entry: zoo.ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = assemble.build(entry)
    if entry.committed:
        weights.load(network, checkpoints.read(entry.name), layouts.get("native"))
    else:
        weights.random_(network, seed=0)
    path = tmp_path_factory.mktemp("module") / "model.pt"
    path.write_bytes(torchscript.save(torchscript.script(assemble.served(entry, network))))
    return path


def in_openvino(
    parts: openvino_network.Parts, entry: zoo.ModelSpec, dtype: torch.dtype
) -> openvino_network.OpenVinoModule:
    size = entry.input
    return openvino_network.load(
        parts, dtype=dtype, height_px=size.height, width_px=size.width, threads=1, cache=CompiledCache(None, ())
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_openvino_computes_what_torchscript_computes(
    entry: zoo.ModelSpec, module_file: Path, dtype: torch.dtype
) -> None:
    parts = engine.parts(module_file)
    module = in_openvino(parts, entry, dtype)
    whole = torchscript.load(module_file.read_bytes())
    pixels = parity.sample_pixels(entry, 3)
    raw = parity.raw_outputs(whole, pixels)
    name = str(dtype).removeprefix("torch.")
    bound = FLOAT32 if dtype is torch.float32 else probe.BOUNDS[entry.task, name]
    with torch.inference_mode():
        found = probe.difference(module.raw(pixels), raw)
        print(f"{entry.name} {name}: {found:.3g}")
        assert found <= bound
        if dtype is torch.float32:
            assert_same(entry.task, run(whole, pixels), tuple(module(pixels)))
        elif entry.committed:
            contract = head_of(entry).contract
            drawn = torch.from_numpy(agreement.pictures(entry.input, contract.compared_pictures))
            full, half = (
                {name: output.numpy() for name, output in zip(contract.outputs, answers, strict=True)}
                for answers in (run(whole, drawn), module(drawn))
            )
            assert contract.compare(full, half).agreement >= LEAST_AGREEMENT
