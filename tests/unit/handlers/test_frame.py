import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp

from handlers.contract.frame import ALIGNMENT_BYTES, DTYPES, MAGIC, FrameError, pack, unpack

ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: stnp.arrays(dtype, stnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)
META_VALUES = st.integers() | st.text(max_size=8) | st.floats(allow_nan=False)
META = st.dictionaries(st.text(max_size=8), META_VALUES, max_size=4)


@given(tensors=st.dictionaries(st.text(min_size=1, max_size=12), ARRAYS, max_size=4), meta=META)
def test_what_was_packed_comes_out(tensors, meta):
    arrays, read_meta = unpack(pack(tensors, meta))
    assert read_meta == meta
    assert list(arrays) == list(tensors)
    for name, array in tensors.items():
        assert arrays[name].dtype == array.dtype
        assert arrays[name].shape == array.shape
        np.testing.assert_array_equal(arrays[name], array)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_frame_are_refused(noise):
    with pytest.raises(FrameError):
        unpack(noise)


@given(st.binary(max_size=80))
def test_a_header_of_noise_is_refused(noise):
    with pytest.raises(FrameError):
        unpack(struct.pack("<4sI", MAGIC, len(noise)) + noise)


@given(cut=st.integers(min_value=0))
def test_a_frame_cut_short_is_refused(cut):
    whole = pack({"pixels": np.ones((2, 3, 3, 3), np.uint8)})
    with pytest.raises(FrameError):
        unpack(whole[: cut % len(whole)])


def test_an_unknown_dtype_is_refused_on_both_sides():
    with pytest.raises(FrameError, match="float64"):
        pack({"x": np.zeros(1)})
    entry = {"name": "x", "dtype": "float64", "shape": [0], "offset": 0}
    header = json.dumps({"tensors": [entry], "meta": {}}).encode()
    with pytest.raises(FrameError, match="float64"):
        unpack(struct.pack("<4sI", MAGIC, len(header)) + header)


def test_big_endian_numbers_are_refused_not_written_as_if_they_were_little():
    with pytest.raises(FrameError, match="float32"):
        pack({"x": np.zeros(1, ">f4")})


@pytest.mark.parametrize("shape", [[2**70], [-1], ["a"], [1.5], [2**62, 8]])
def test_a_shape_that_cannot_be_is_refused(shape):
    entry = {"name": "x", "dtype": "uint8", "shape": shape, "offset": 0}
    header = json.dumps({"tensors": [entry], "meta": {}}).encode()
    with pytest.raises(FrameError):
        unpack(struct.pack("<4sI", MAGIC, len(header)) + header)


def test_tensors_are_aligned_views_and_an_order_other_than_c_is_packed_as_seen():
    transposed = np.arange(6, dtype=np.float32).reshape(2, 3).T
    frame = pack({"small": np.array([1], np.uint8), "turned": transposed})
    arrays, _ = unpack(frame)
    np.testing.assert_array_equal(arrays["turned"], transposed)
    base = np.frombuffer(frame, np.uint8).__array_interface__["data"][0]
    for array in arrays.values():
        assert not array.flags.owndata
        assert (array.__array_interface__["data"][0] - base) % ALIGNMENT_BYTES == 0
