"""The committed demo checkpoints are the recorded ones, fit their networks, and answer truthfully."""

from pathlib import Path

import pytest
import torch

from handlers.contract.card import Task, WeightsState
from model_store import zoo
from model_store.build import assemble, export
from model_store.demo import checkpoints
from model_store.demo_training import held_out
from model_store.weights import container, layouts
from model_store.weights import load as weights
from model_store.weights.errors import CheckpointError

# TorchScript is what TorchServe loads; torch announces its successor on every call.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

DEMO = [entry for entry in zoo.ENTRIES if entry.committed]
PICTURES = 48
SEED = 991  # neither the training's nor that of the recorded scores
# Of a sample this small; the scores of the whole are in records.json.
ENOUGH = {
    Task.CLASSIFY: {"top1": 0.88},
    Task.DETECT: {"map": 0.65, "map50": 0.88},
    Task.SEGMENT: {"miou": 0.82},
}
# What the project promises of the recorded scores.
PROMISED = {
    Task.CLASSIFY: {"top1": 0.97},
    Task.DETECT: {"map": 0.70, "map50": 0.93},
    Task.SEGMENT: {"miou": 0.88},
}


def loaded(entry: zoo.ModelSpec) -> assemble.Network:
    network = assemble.build(entry)
    weights.load(network, checkpoints.read(entry.name), layouts.get("native"))
    return network


def test_every_committed_checkpoint_is_recorded() -> None:
    assert DEMO
    assert set(checkpoints.records()) == {entry.name for entry in DEMO}


def test_there_is_one_checkpoint_per_task() -> None:
    assert {entry.task for entry in DEMO} == set(Task)


def test_recorded_scores_are_those_promised() -> None:
    scores = {zoo.get(name).task: record.scores for name, record in checkpoints.records().items()}
    for task, metrics in PROMISED.items():
        for metric, promised in metrics.items():
            assert scores.get(task, {}).get(metric, 0.0) >= promised, (task, metric)


@pytest.mark.parametrize("entry", DEMO, ids=lambda entry: entry.name)
def test_the_file_is_the_recorded_one_and_small(entry: zoo.ModelSpec) -> None:
    path = entry.committed_checkpoint
    assert path is not None
    assert path.stat().st_size < checkpoints.MAX_BYTES
    state = container.read(path).state
    assert weights.digest(state) == checkpoints.records()[entry.name].digest
    assert all(value.dtype == torch.float16 for value in state.values() if value.dim() > 1)


def test_the_page_beside_them_says_what_the_records_say() -> None:
    assert (checkpoints.FOLDER / "README.md").read_text() == checkpoints.readme(checkpoints.records())


@pytest.mark.parametrize("entry", DEMO, ids=lambda entry: entry.name)
def test_held_out_pictures_are_answered_rightly(entry: zoo.ModelSpec) -> None:
    torch.set_num_threads(1)
    scores = held_out.measure(entry, loaded(entry), pictures=PICTURES, seed=SEED)
    for metric, enough in ENOUGH[entry.task].items():
        assert scores[metric] >= enough, scores


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    entry = DEMO[0]
    record = checkpoints.records()[entry.name]
    state = container.read(checkpoints.FOLDER / f"{entry.name}.safetensors").state
    name = next(iter(state))
    state[name] = state[name] + 1
    checkpoints.write(entry.name, state, record, folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"records\.json"):
        checkpoints.read(entry.name, folder=tmp_path)


def test_an_archive_carries_the_demo_weights_and_says_so() -> None:
    entry = next(entry for entry in DEMO if entry.task is Task.CLASSIFY)
    exported = export.export(entry.name, checkpoint=entry.committed_checkpoint)
    assert exported.card.weights.state is WeightsState.DEMO
    assert exported.card.weights.sha256 == weights.digest(loaded(entry).state_dict())
    recorded = checkpoints.records()[entry.name].scores["top1"]
    assert exported.card.weights.published["top1"] == pytest.approx(100 * recorded)
