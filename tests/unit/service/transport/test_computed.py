"""Only words that are known become values of metrics' labels and of metadata."""

from typing import Any

import pytest

from service.core.types import Computed
from service.transport.computed import read


def test_what_a_worker_says_is_read() -> None:
    meta = {
        "engine": "torchscript",
        "dtype": "float16",
        "device": "cuda:3",
        "engines_refused": "openvino/float32,openvino/bfloat16",
    }
    said = read(meta)
    assert said == Computed("torchscript", "float16", "cuda:3", "openvino/bfloat16,openvino/float32")
    assert said.device_kind == "cuda"
    assert read({}) == Computed()


@pytest.mark.parametrize("word", ["x" * 1000, "cpu\n", "openvino\u00e9", ["openvino"], {"a": 1}, 7, True])
def test_other_words_are_one_value(word: Any) -> None:
    said = read({"engine": word, "dtype": word, "device": word, "engines_refused": f"{word},{word},{word}"})
    assert said == Computed("other", "other", "other", "other")
