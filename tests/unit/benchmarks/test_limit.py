"""The in-process limit: which pairs are tried, how the best is found, and what really ran."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import worker_archives
from archive_files import entries
from fakes import toy_card

from benchmarks import limit_search
from benchmarks.engines import accuracies
from benchmarks.limit import InProcess, LimitFailed, Shape, Throughput
from benchmarks.limit_search import Found, Limits, search, summed_up
from benchmarks.pairs import AUTO, REFERENCE, Accuracy, Pair, to_try
from benchmarks.target import picture
from handlers.contract.archive_file import CARD_ENTRY, MODULE_ENTRY, pack
from handlers.contract.card import Agreement, InputSize, Output
from model_store.networks.pixels import Pixels

pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.:DeprecationWarning")

OPENVINO, OPENVINO_BF16 = Pair("openvino", "float32"), Pair("openvino", "bfloat16")
TORCHSCRIPT_BF16 = Pair("torchscript", "bfloat16")


@pytest.fixture(autouse=True)
def _threads_as_before() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def write_archive(folder: Path, **changes: Any) -> Path:
    """Write an archive with a module of the three parts, which runs in every dtype. `changes` are those of its card."""
    card = toy_card(name="toy_classify")
    torch.manual_seed(0)
    served = worker_archives.ToyServed()
    served.pixels = Pixels(normalize=card.normalize)
    module = worker_archives.scripted(served)
    card = card.model_copy(
        update={
            "input": InputSize(height=worker_archives.SIDE, width=worker_archives.SIDE),
            "labels": ("cat", "dog"),
            "outputs": tuple(Output(**output) for output in worker_archives.OUTPUTS),
            "module_sha256": hashlib.sha256(module).hexdigest(),
            **changes,
        }
    )
    content = {**entries(card), CARD_ENTRY: card.to_json().encode(), MODULE_ENTRY: module}
    path = folder / "toy_classify.mar"
    path.write_bytes(pack(content))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_archive(tmp_path)


NARROW, WIDE = Shape(2, 1), Shape(1, 2)


def throughput(pair: Pair, per_second: float, shape: Shape = NARROW, batch: int = 8) -> Throughput:
    return Throughput(pair, shape, batch, per_second, 10.0)


def test_the_reference_is_always_tried_and_first() -> None:
    assert to_try(AUTO) == (REFERENCE, TORCHSCRIPT_BF16, OPENVINO, OPENVINO_BF16)
    assert to_try(Pair("openvino", "auto")) == (REFERENCE, OPENVINO, OPENVINO_BF16)
    assert to_try(Pair("auto", "float32")) == (REFERENCE, OPENVINO)
    assert to_try(OPENVINO_BF16) == (REFERENCE, OPENVINO_BF16)


def test_with_a_gpu_only_what_was_asked_for_is_tried() -> None:
    assert to_try(AUTO, gpu=True) == (AUTO,)


@pytest.mark.parametrize(
    ("asked", "other", "admitted"),
    [
        (AUTO, OPENVINO_BF16, True),
        (Pair("auto", "float32"), OPENVINO, True),
        (Pair("auto", "float32"), OPENVINO_BF16, False),
        (OPENVINO, REFERENCE, False),
        (OPENVINO, OPENVINO, True),
    ],
)
def test_a_worker_may_fill_in_only_what_was_left_to_it(asked: Pair, other: Pair, admitted: bool) -> None:
    assert asked.admits(other) is admitted


TRIED = [
    throughput(REFERENCE, 50.0),
    throughput(OPENVINO_BF16, 90.0),
    throughput(REFERENCE, 60.0, WIDE, 4),
    throughput(OPENVINO_BF16, 80.0, WIDE, 4),
    throughput(OPENVINO, 70.0),
]


def known(*, admitted: bool = True) -> dict[Pair, Accuracy]:
    return {
        REFERENCE: Accuracy(0.0),
        OPENVINO: Accuracy(1e-6),
        OPENVINO_BF16: Accuracy(0.03, 0.99, admitted),
    }


def test_the_limit_is_the_best_of_all_and_the_reference_the_best_of_torchscript_float32() -> None:
    found = summed_up("toy", TRIED, known(), AUTO)
    assert found.limit == throughput(OPENVINO_BF16, 90.0)
    assert found.reference == throughput(REFERENCE, 60.0, WIDE, 4)
    assert [(one.engine, one.dtype, one.per_second) for one in found.pairs] == [
        ("openvino", "bfloat16", 90.0),
        ("openvino", "float32", 70.0),
        ("torchscript", "float32", 60.0),
    ]
    assert [(one.difference, one.agreement) for one in found.pairs] == [(0.03, 0.99), (1e-6, None), (0.0, None)]
    assert found.pairs[2].shape == "1x2"


def test_a_dtype_that_auto_refuses_to_a_model_is_no_limit() -> None:
    found = summed_up("toy", TRIED, known(admitted=False), AUTO)
    assert found.limit == throughput(OPENVINO, 70.0)
    assert [one.admitted for one in found.pairs] == [False, True, True]
    asked = summed_up("toy", TRIED, known(admitted=False), Pair("auto", "bfloat16"))
    assert asked.limit == throughput(OPENVINO_BF16, 90.0), "who asks for a dtype gets it, from a server too"


def test_the_reference_is_no_limit_for_servers_with_another_engine() -> None:
    slow = [throughput(REFERENCE, 60.0), throughput(OPENVINO, 50.0)]
    found = summed_up("toy", slow, known(), Pair("openvino", "auto"))
    assert found.limit.pair == OPENVINO
    with pytest.raises(LimitFailed, match="openvino/auto"):
        summed_up("toy", slow[:1], known(), Pair("openvino", "auto"))


def test_what_a_worker_chose_on_a_gpu_is_the_limit() -> None:
    half = Pair("torchscript", "float16")
    found = summed_up("toy", [throughput(half, 500.0)], {AUTO: Accuracy()}, AUTO)
    assert found.limit.pair == half
    assert found.reference is None


class FakeProcesses:
    """Stands for `InProcess`; remembers what was started and measured."""

    started: list[tuple[Shape, list[Pair]]]
    measured: list[tuple[Shape, Pair, int, bool]]

    def __init__(self, archive: Path, shape: Shape, image: bytes, *, pairs: list[Pair], gpu: bool) -> None:
        self.shape = shape
        self.started.append((shape, pairs))

    def __enter__(self) -> "FakeProcesses":
        return self

    def __exit__(self, *_: object) -> None: ...

    def measure(self, batch: int, seconds: float, *, pair: Pair, alone: bool = False) -> Throughput:
        self.measured.append((self.shape, pair, batch, alone))
        return throughput(pair, 100.0, self.shape, batch)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> type[FakeProcesses]:
    class Fresh(FakeProcesses):
        started, measured = [], []

    monkeypatch.setattr(limit_search, "InProcess", Fresh)
    return Fresh


def limits(limit: Throughput, reference: Throughput | None) -> Limits:
    return Limits(Path("toy.mar"), b"picture", Found((limit,), limit, reference, ()))


def test_the_limit_and_the_reference_have_their_own_set_ups(processes: type[FakeProcesses]) -> None:
    with limits(throughput(OPENVINO, 9.0, NARROW, 16), throughput(REFERENCE, 5.0, WIDE, 4)) as both:
        limit, reference = both.limit(1, 32, 1.0), both.reference(1, 32, 1.0)
        both.limit(1, 1, 1.0)
    assert processes.started == [(NARROW, [OPENVINO]), (WIDE, [REFERENCE])]
    assert processes.measured == [
        (NARROW, OPENVINO, 16, False),
        (WIDE, REFERENCE, 4, False),
        (NARROW, OPENVINO, 1, True),
    ]
    assert (limit.engine, limit.dtype, limit.model, limit.clients) == ("openvino", "float32", "toy", 32)
    assert reference is not None
    assert (reference.engine, reference.shape) == ("torchscript", "1x2")


def test_both_share_the_processes_where_the_set_up_is_the_same(processes: type[FakeProcesses]) -> None:
    with limits(throughput(OPENVINO, 9.0), throughput(REFERENCE, 5.0)):
        pass
    assert processes.started == [(NARROW, [OPENVINO, REFERENCE])]


@pytest.mark.parametrize("reference", [None, throughput(REFERENCE, 9.0)])
def test_no_reference_is_measured_twice(processes: type[FakeProcesses], reference: Throughput | None) -> None:
    with limits(throughput(REFERENCE, 9.0), reference) as both:
        assert both.reference(1, 32, 1.0) is None
    assert processes.started == [(NARROW, [REFERENCE])]


def test_the_pairs_take_turns_at_every_batch_size(
    processes: type[FakeProcesses], monkeypatch: pytest.MonkeyPatch, archive: Path
) -> None:
    found = {REFERENCE: Accuracy(0.0), OPENVINO: Accuracy(1e-6)}
    monkeypatch.setattr(limit_search, "_accuracies", lambda archive, pairs: found)
    monkeypatch.setattr(limit_search, "usable_cores", lambda: 2)
    search(archive, b"picture", AUTO, seconds=1.0, quick=True, gpu=False)
    assert processes.started == [(NARROW, [REFERENCE, OPENVINO])], "what does not load here is not tried"
    assert [(pair, batch) for _, pair, batch, _ in processes.measured] == [
        (REFERENCE, 8),
        (OPENVINO, 8),
        (REFERENCE, 16),
        (OPENVINO, 16),
    ]
    processes.measured.clear()
    search(archive, b"picture", AUTO, seconds=1.0, quick=False, gpu=False)
    assert {(str(shape), batch) for shape, _, batch, _ in processes.measured} == {
        (shape, batch) for shape in ("2x1", "1x2") for batch in (1, 4, 8, 16)
    }


def test_the_accuracy_is_that_of_the_pairs_that_load_here(archive: Path) -> None:
    found = accuracies(archive, 1, [REFERENCE, TORCHSCRIPT_BF16, OPENVINO])
    assert list(found) == [REFERENCE, TORCHSCRIPT_BF16, OPENVINO]
    assert found[REFERENCE] == Accuracy(0.0)
    exact, rounded = found[OPENVINO].difference, found[TORCHSCRIPT_BF16].difference
    assert exact is not None
    assert rounded is not None
    assert 0.0 <= exact < 1e-4 < rounded < 0.5


@pytest.mark.parametrize(("agreement", "admitted"), [(None, False), (0.5, False), (0.99, True)])
def test_bfloat16_is_admitted_as_the_card_allows(tmp_path: Path, agreement: float | None, admitted: bool) -> None:
    said = agreement and Agreement(metric="top1", pictures=10, agreement=agreement, score_max_abs_diff=0.1)
    archive = write_archive(tmp_path, bfloat16=said)
    found = accuracies(archive, 1, [REFERENCE, TORCHSCRIPT_BF16])[TORCHSCRIPT_BF16]
    assert (found.agreement, found.admitted) == (agreement, admitted)


def test_without_openvino_its_pairs_are_left_out(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers.openvino_network.installed", lambda: False)
    assert list(accuracies(archive, 1, to_try(AUTO))) == [REFERENCE, TORCHSCRIPT_BF16]


def test_real_processes_find_the_limit_of_a_module(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit_search, "usable_cores", lambda: 1)
    found = search(archive, picture(), OPENVINO, seconds=0.05, quick=True, gpu=False)
    assert {one.pair for one in found.tried} == {REFERENCE, OPENVINO}
    assert all(one.per_second > 0 and one.cpu_ms_per_picture > 0 for one in found.tried)
    assert found.reference is not None
    assert found.reference.pair == REFERENCE
    with Limits(archive, picture(), found) as both:
        turn = both.limit(1, 1, 0.05)
    assert (turn.engine, turn.dtype) == (found.limit.pair.engine, found.limit.pair.dtype)


def test_a_process_that_runs_something_else_ends_the_benchmark(archive: Path) -> None:
    with pytest.raises(LimitFailed), InProcess(archive, Shape(1, 1), picture(), pairs=[Pair("cuda", "float32")]):
        pass
