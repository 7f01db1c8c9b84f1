"""The callers file: what it may say, and errors that name the place without quoting a key."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.access import api_keys, callers_file
from service.access.callers import CallerLimits
from service.access.followed_file import FileInvalid

DIGEST = api_keys.digest("a key").hex()
OTHER = api_keys.digest("another key").hex()
DEFAULTS = CallerLimits(requests_per_second=5.0, burst=7, inflight_requests=3, inflight_bytes=100)


def read(text: str | bytes, *, json_format: bool = False, access_keys: tuple[str, ...] = ()) -> callers_file.Callers:
    raw = text.encode() if isinstance(text, str) else text
    return callers_file.read(raw, json_format=json_format, defaults=DEFAULTS, access_keys=access_keys)


def test_toml_and_json_say_the_same() -> None:
    toml = f"""
        [[callers]]
        name = "camera-7"
        sha256 = ["{DIGEST}", "{OTHER}"]
        models = ["m"]
        requests_per_second = 20
        inflight_megabytes = 2
        [[callers]]
        name = "token:alice@example.org"
        burst = 2
    """
    camera = {"name": "camera-7", "sha256": [DIGEST, OTHER], "models": ["m"], "requests_per_second": 20}
    same = {"callers": [camera | {"inflight_megabytes": 2}, {"name": "token:alice@example.org", "burst": 2}]}
    for callers in (read(toml), read(json.dumps(same), json_format=True)):
        camera_7 = callers.by_name["camera-7"]
        assert camera_7.models == {"m"}
        assert camera_7.limits == CallerLimits(20.0, 0, 3, 2 * 2**20), "its rate has the burst of one second"
        assert callers.owner("a key") == callers.owner("another key") == camera_7
        assert callers.owner("a third key") is None
        alice = callers.by_name["token:alice@example.org"]
        assert (alice.models, alice.limits) == (None, CallerLimits(5.0, 2, 3, 100))


def test_no_callers_is_a_valid_file() -> None:
    assert read("callers = []").by_name == {}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "callers: Field required"),
        ("callers = 1", "callers"),
        ("[[caller]]", "Field required"),
        ("[[callers]]\nname = 'a'", r"callers\.1: .*sha256 is missing"),
        (f"[[callers]]\nname = 'a b'\nsha256 = ['{DIGEST}']", r"callers\.1: .*name is not"),
        (f"[[callers]]\nname = 'other'\nsha256 = ['{DIGEST}']", "reserved"),
        (f"[[callers]]\nname = 'anonymous'\nsha256 = ['{DIGEST}']", "only a plain name has keys"),
        (f"[[callers]]\nname = 'token:x'\nsha256 = ['{DIGEST}']", "only a plain name has keys"),
        ("[[callers]]\nname = 'a'\nsha256 = ['SECRET']", r"callers\.1\.sha256\.1"),
        ("[[callers]]\nname = 'a'\nsha256 = 'SECRET'", r"callers\.1\.sha256"),
        (f"[[callers]]\nname = 'a'\nsha256 = ['{DIGEST}']\nkey = 'SECRET'", r"callers\.1\.key"),
        (f"[[callers]]\nname = 'a'\nsha256 = ['{DIGEST}']\nrequests_per_second = -1", "requests_per_second"),
        (f"[[callers]]\nname = 'a'\nsha256 = ['{DIGEST}']\nrequests_per_second = nan", "requests_per_second"),
        ("[[callers]\nname = 'SECRET'", r"not TOML \(at line 1"),
        (f"[[callers]]\nname = 'a'\nsha256 = ['{DIGEST}', '{DIGEST}']", "same sha256 twice"),
        (
            f"[[callers]]\nname = 'a'\nsha256 = ['{DIGEST}']\n[[callers]]\nname = 'a'\nsha256 = ['{OTHER}']",
            "same name twice: a",
        ),
    ],
)
def test_an_error_names_the_place_and_quotes_no_value(text: str, named: str) -> None:
    with pytest.raises(FileInvalid, match=named) as raised:
        read(text)
    assert "SECRET" not in str(raised.value)
    assert DIGEST not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_json_errors_name_the_line() -> None:
    with pytest.raises(FileInvalid, match=r"not JSON \(line 1 column"):
        read('{"callers": SECRET', json_format=True)


def test_the_setting_and_the_file_add_up_and_may_not_share_a_name() -> None:
    text = f"[[callers]]\nname = 'a'\nsha256 = ['{DIGEST}']"
    assert set(read(text, access_keys=(f"b:{OTHER}",)).by_name) == {"a", "b"}
    with pytest.raises(FileInvalid, match="same name twice: a"):
        read(text, access_keys=(f"a:{OTHER}",))


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_read_or_refused(raw: bytes, json_format: bool) -> None:
    try:
        read(raw, json_format=json_format)
    except FileInvalid as error:
        assert "\n" not in str(error)


JSON: Any = (
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9) | st.lists(st.text(max_size=9))
)


ENTRIES = st.lists(st.dictionaries(st.sampled_from(["name", "sha256", "burst"]), JSON), max_size=3)


@given(ENTRIES)
def test_any_json_is_read_or_refused(entries: Any) -> None:
    try:
        read(json.dumps({"callers": entries}), json_format=True)
    except FileInvalid as error:
        assert "\n" not in str(error)


def test_new_keys_have_256_random_bits_and_entries_that_the_file_takes() -> None:
    keys = {api_keys.new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(re.fullmatch(r"mv_[A-Za-z0-9_-]{43}", key) for key in keys)
    key = keys.pop()
    callers = read(callers_file.entry("camera-7", key))
    assert callers.owner(key) == callers.by_name["camera-7"]
    for name in ("", "a b", 'a"', "token:x", "anonymous", "x" * 65, "a\n"):
        with pytest.raises(ValueError, match="name"):
            callers_file.entry(name, key)
