"""What a case of a golden file changes is read from its fields: its name may be any."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_store import zoo
from model_store.build import assemble
from model_store.verify.golden import GoldenError, draw, fill, read
from model_store.verify.run import check_content
from model_store.weights import layouts
from model_store.weights import load as weights

GOLDEN = Path(__file__).parent / "golden"


def content_with(name: str, number: int, **fields: Any) -> dict[str, Any]:
    """A file with one of its cases, under another name."""
    content = read(GOLDEN / name)
    content["cases"] = [{**content["cases"][number], "name": "mine", **fields}]
    return content


def tall() -> dict[str, Any]:
    """A case of EMO with one picture of 352x224, with the answers for that picture in a batch of two."""
    content = read(GOLDEN / "emo_1M.json")
    network = assemble.build(zoo.get("emo_1m_classify"))
    weights.load(network, fill(content["state_dict"], content["salt"], content["gain"]), layouts.get("emo"))
    shape = [1, 3, 352, 224]
    x = torch.from_numpy(draw("input-1", shape).astype(np.float32))
    with torch.inference_mode():
        logits = network(x.repeat(2, 1, 1, 1))[0]
        double = network.double()(x.repeat(2, 1, 1, 1).double())[0]
    stored = {
        "shape": [1, 1000],
        "std": float(logits.std(correction=0)),
        "values": logits.tolist(),
        "float64_first32": double[:32].tolist(),
    }
    content["cases"] = [
        {"name": "tall", "input_shape": shape, "input_seed_string": "input-1", "logits": stored, "taps": []}
    ]
    return content


def test_a_tall_picture_alone_is_compared() -> None:
    checks = check_content(tall())
    assert [check.name for check in checks] == [
        "parameters",
        "tall: logits, share of std",
        "tall: logits in float64, relative",
    ]
    assert all(check.ok for check in checks)


@pytest.mark.parametrize(
    ("file", "number", "argument"),
    [("emo_5M.json", 3, {"window_sizes": [10, 10, 10, 10]}), ("mobilevit_xxs.json", 4, {"output_stride": 8})],
)
def test_the_variation_is_a_field(file: str, number: int, argument: dict[str, Any]) -> None:
    for fields in ({}, {"note": "", "constructor": argument}):
        assert all(check.ok for check in check_content(content_with(file, number, **fields)))
    assert not all(check.ok for check in check_content(content_with(file, number, note="")))


def test_the_first_release_is_known_by_its_note() -> None:
    assert all(check.ok for check in check_content(content_with("swiftformer_XS.json", 3)))
    assert not all(check.ok for check in check_content(content_with("swiftformer_XS.json", 3, note="")))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"constructor": {"patch_size": 4}}, "no constructor argument 'patch_size'"),
        ({"note": "constructor argument output_stride=64"}, "output_stride must be"),
    ],
)
def test_an_unknown_variation_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(GoldenError, match=reason):
        check_content(content_with("mobilevit_xxs.json", 0, **fields))
