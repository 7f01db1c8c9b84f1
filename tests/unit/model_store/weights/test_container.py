"""Checkpoints as frameworks write them: which tensors are taken, what is said, and what is refused in one line."""

import argparse
import json
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from model_store.weights import container
from model_store.weights.errors import CheckpointError

RAW = {"stem.weight": torch.arange(6.0).reshape(2, 3), "head.fc.bias": torch.ones(4)}
EMA = {name: value + 100 for name, value in RAW.items()}


def prefixed(prefix, state=RAW):
    return {prefix + name: value for name, value in state.items()}


def read(tmp_path, content, which=None, name="a.pt"):
    torch.save(content, tmp_path / name)
    return container.read(tmp_path / name, which)


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


LIGHTNING = {"epoch": 9, "pytorch-lightning_version": "2.6.6", "loops": {}, "hyper_parameters": {"lr": 1e-3}}


@pytest.mark.parametrize(
    ("content", "stripped"),
    [
        (RAW, ""),
        (OrderedDict(RAW), ""),
        *[({key: RAW, "epoch": 3}, "") for key in ("state_dict", "model", "net", "weights", "model_state_dict")],
        ({"model": {"state_dict": RAW}}, ""),
        ({"epoch": 3, "my_model": RAW, "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}}, ""),
        *[
            (prefixed(prefix), prefix)
            for prefix in ("module.", "model.", "net.", "_orig_mod.", "module.model.", "model.net.", "student.")
        ],
        (prefixed("module._orig_mod."), "module._orig_mod."),
        (prefixed("_orig_mod.module."), "module._orig_mod."),
        ({"stem._orig_mod.weight": RAW["stem.weight"], "head.fc.bias": RAW["head.fc.bias"]}, "_orig_mod."),
        ({**LIGHTNING, "state_dict": prefixed("model.")}, "model."),
        ({"epoch": 9, "arch": "x", "state_dict": prefixed("module."), "best_acc1": torch.tensor(70.0)}, "module."),
        ({"args": argparse.Namespace(lr=1), "state_dict": RAW}, ""),
    ],
)
def test_one_set_of_weights_is_found(tmp_path, content, stripped):
    found = container.unwrap(content)
    assert same(found.state, RAW)
    assert found.weight_set == ""
    assert any(repr(stripped) in note for note in found.notes) == bool(stripped)
    assert same(read(tmp_path, content).state, RAW)


def test_prefixes_are_stripped_from_safetensors_too(tmp_path):
    save_file(prefixed("module.model."), tmp_path / "a.safetensors")
    assert same(container.read(tmp_path / "a.safetensors").state, RAW)


def test_half_precision_stays_and_is_loaded_as_it_is(tmp_path):
    assert read(tmp_path, {name: value.half() for name, value in RAW.items()}).state["stem.weight"].dtype is torch.half


@pytest.mark.parametrize(
    ("content", "raw_key", "ema_key"),
    [
        ({"epoch": 9, "state_dict": RAW, "state_dict_ema": EMA}, "state_dict", "state_dict_ema"),
        ({"model": RAW, "model_ema": EMA, "optimizer": {}}, "model", "model_ema"),
        ({"state_dict": RAW, "ema_state_dict": prefixed("module.", EMA)}, "state_dict", "ema_state_dict"),
        ({"net": RAW, "net_E": EMA}, "net", "net_E"),
        ({"state_dict": {**prefixed("model."), **prefixed("model_ema.", EMA)}}, None, None),
    ],
)
def test_the_averaged_set_is_taken_and_told(tmp_path, content, raw_key, ema_key):
    if raw_key is None:
        content = content["state_dict"]  # two sets in one
        raw_key, ema_key = "model", "model_ema"
    found = container.unwrap(content)
    assert same(found.state, EMA)
    assert found.weight_set == ema_key
    assert "averaged" in found.notes[0]
    assert raw_key in found.notes[0]
    assert same(container.unwrap(content, "raw").state, RAW)
    assert same(container.unwrap(content, "ema").state, EMA)


def test_mmengine_keeps_the_averaged_set_under_state_dict():
    content = {
        "meta": {"mmengine_version": "0.10", "dataset_meta": {"classes": ("a", "b")}},
        "state_dict": EMA,
        "ema_state_dict": {**prefixed("module."), "steps": torch.tensor(7)},
    }
    assert same(container.unwrap(content).state, EMA)
    assert same(container.unwrap(content, "raw").state, RAW)
    assert container.unwrap(content).labels == ("a", "b")


def test_an_averaged_model_of_torch_loads():
    model = nn.Linear(2, 2)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    found = container.unwrap(averaged.state_dict())
    assert same(found.state, dict(model.state_dict()))
    assert any("n_averaged" in note for note in found.notes)


@pytest.fixture
def history_buffer(monkeypatch):
    """A class of a framework that is not installed where the file is read, with a numpy array inside."""

    class HistoryBuffer:
        def __init__(self):
            self.history = np.ones(3)

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = "mmengine.logging.history_buffer", "HistoryBuffer"
    with monkeypatch.context() as patch:
        for name in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules["mmengine.logging.history_buffer"].HistoryBuffer = HistoryBuffer
        yield HistoryBuffer


@pytest.mark.parametrize("new_form", [True, False])
def test_openmmlab_files_load_without_its_classes(tmp_path, history_buffer, monkeypatch, new_form):
    content = {
        "meta": {"epoch": 9, "CLASSES": ["cat", "dog"]},
        "state_dict": RAW,
        "message_hub": {"log_scalars": OrderedDict(loss=history_buffer(), lr=history_buffer())},
    }
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=new_form)
    for name in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
        monkeypatch.delitem(sys.modules, name)
    found = container.read(tmp_path / "a.pth")
    assert same(found.state, RAW)
    assert found.labels == ("cat", "dog")
    assert "mmengine" not in sys.modules


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_shards_are_one_checkpoint(tmp_path, index):
    save_file({"stem.weight": RAW["stem.weight"]}, tmp_path / "1.safetensors")
    torch.save({"head.fc.bias": RAW["head.fc.bias"]}, tmp_path / "2.bin")
    weight_map = {"stem.weight": "1.safetensors", "head.fc.bias": "2.bin"}
    (tmp_path / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert same(container.read(tmp_path).state, RAW)
    assert same(container.read(tmp_path / index).state, RAW)


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ({"a": "../outside.safetensors"}, "not a file beside it"),
        ({"a": "absent.safetensors"}, "no such file"),
        ({"a": "model.safetensors.index.json"}, "not a file beside it"),
        ([], "not an index"),
        ({str(i): f"{i}.safetensors" for i in range(1001)}, "at most 1000"),
    ],
)
def test_wrong_indexes_are_refused(tmp_path, weight_map, said):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=said):
        container.read(tmp_path)


def test_the_bytes_tell_the_kind_of_file_not_its_name(tmp_path):
    assert same(read(tmp_path, {"state_dict": prefixed("module.")}, name="model_best.pth.tar").state, RAW)
    save_file(RAW, tmp_path / "weights.pt")
    assert same(container.read(tmp_path / "weights.pt").state, RAW)


class Hostile:
    def __reduce__(self):
        return print, ("this must not be printed",)


def torchscript(path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), str(path))


def expanded(path):
    torch.save({"a": torch.zeros(1).expand(2**30)}, path)


def compressed(path):
    torch.save({"a": torch.zeros(2**20)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def truncated(path):
    torch.save(RAW, path)
    path.write_bytes(path.read_bytes()[:-200])


def of_another_zip_version(path):
    torch.save(RAW, path)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 91  # the version that is needed, in the first entry of the directory
    path.write_bytes(content)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("write", "said"),
    [
        (torchscript, "a TorchScript module, not a checkpoint; serve it with `mobilevision models add"),
        (lambda path: torch.save(nn.Linear(2, 2), path), r"a whole pickled module \(torch.nn.modules.linear.Linear\)"),
        (lambda path: torch.save({"state_dict": RAW, "x": Hostile()}, path), r"would run code when loaded \(.*print\)"),
        (expanded, "larger than the bytes that the file has"),
        (compressed, "a compressed zip"),
        (truncated, "truncated or damaged"),
        (of_another_zip_version, "truncated or damaged"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(b"<html>not found</html>"), "no checkpoint"),
        (lambda path: torch.save([torch.zeros(1)], path), "holds list"),
        (lambda path: torch.save({"epoch": 3}, path), "not a dict of tensors"),
        (lambda path: torch.save({"net_a": RAW, "net_b": RAW}, path), "several sets of weights: net_a, net_b"),
        (lambda path: torch.save({**RAW, "epoch": 3}, path), "not named tensors: epoch"),
        (lambda path: torch.save({"a": torch.zeros(2).to_sparse()}, path), "sparse"),
    ],
)
def test_what_cannot_be_read_ends_in_one_line_that_names_the_file(tmp_path, capsys, write, said):
    path = tmp_path / "a.pt"
    write(path)
    with pytest.raises(CheckpointError, match=said) as caught:
        container.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "must not be printed" not in capsys.readouterr().out


def test_a_set_that_is_not_there_is_named():
    with pytest.raises(CheckpointError, match="has no ema weights"):
        container.unwrap(RAW, "ema")
