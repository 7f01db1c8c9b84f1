"""A local web site, a store, and good weights for the tests of `models pull`."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoint_site import ENTRY, Site, saved

from model_store import zoo
from model_store.build import assemble
from model_store.pull import fetch
from model_store.pull.store import Store
from model_store.weights import load as weights


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a download would have waited between attempts."""
    waited: list[float] = []
    monkeypatch.setattr(fetch.download, "__kwdefaults__", fetch.download.__kwdefaults__ | {"sleep": waited.append})
    return waited


@pytest.fixture(autouse=True, scope="module")
def one_network() -> Iterator[None]:
    """Build each network once. The next test overwrites the weights that a test loads."""
    build, built = assemble.build, {}

    def once(entry: zoo.ModelSpec) -> assemble.Network:
        key = (entry.name, entry.classes, str(torch.get_default_device()))
        return built.get(key) or built.setdefault(key, build(entry))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "build", once)
        yield


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Weights of the model under the names of its network."""
    network = assemble.build(ENTRY)
    weights.random_(network, seed=1)
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.fixture(scope="module")
def good(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return saved(state, tmp_path_factory.mktemp("good"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")
