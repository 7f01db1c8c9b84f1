"""The builds under test: each overlay; the base alone, with each component, and with the largest sets of them."""

import pytest
from manifests import OVERLAYS, Built, combinations, combined, largest, overlay

LARGEST = largest()
BASES = [(), *combinations(1), LARGEST[0], LARGEST[len(LARGEST) // 2], LARGEST[-1]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "built" in metafunc.fixturenames:
        builds = [("overlay", name) for name in OVERLAYS] + [("base", *names) for names in BASES]
        metafunc.parametrize("built", builds, ids="+".join, indirect=True)


@pytest.fixture
def built(request: pytest.FixtureRequest) -> Built:
    kind, *names = request.param
    return overlay(*names) if kind == "overlay" else combined(*names)
