"""Who a call comes from: keys, certificates, nobody. Files that change. No key ever leaves."""

import hmac
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
from access_keys import KEY, OTHER_KEY, caller, write_callers
from fakes import local_settings

from service.access import api_keys, callers_file
from service.access.callers import ANONYMOUS_NAME, Caller, CallerLimits
from service.access.control import AccessControl
from service.access.followed_file import LOOK_SECONDS, MOST_BYTES
from service.core.errors import Unauthenticated
from service.core.settings import Settings, SettingsError, as_environment, load

Headers = Sequence[tuple[str, str | bytes]]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_callers(tmp_path / "callers.json", caller("camera", KEY, models=["m"]), caller("batch", OTHER_KEY))


@pytest.fixture
def access(file: Path, clock: Clock) -> AccessControl:
    return AccessControl.from_settings(local_settings(callers_file=file), clock)


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", f"Bearer {KEY}")],
        [("authorization", f"bearer  {KEY} ")],
        [("x-api-key", KEY)],
        [("x-api-key", KEY), ("authorization", f"Bearer {KEY}"), ("other", "x")],
    ],
)
def test_a_key_names_its_caller(access: AccessControl, headers: Headers) -> None:
    found = access.identify(headers)
    assert (found.name, found.models, found.listed) == ("camera", {"m"}, True)


@pytest.mark.parametrize(
    "headers",
    [
        [("x-api-key", "mv_wrong")],
        [("x-api-key", "")],
        [("x-api-key", KEY + "x")],
        [("x-api-key", KEY[:-1])],
        [("x-api-key", "x" * 100_000)],
        [("x-api-key", "ключ")],
        [("authorization", "Bearer")],
        [("authorization", f"Basic {KEY}")],
        [("authorization", KEY)],
        [("x-api-key", KEY), ("x-api-key", OTHER_KEY)],
        [("x-api-key", KEY), ("authorization", f"Bearer {OTHER_KEY}")],
    ],
)
def test_wrong_credentials_are_refused_and_never_make_a_call_anonymous(access: AccessControl, headers: Headers) -> None:
    assert access.allows_anonymous
    with pytest.raises(Unauthenticated) as raised:
        access.identify(headers)
    assert "mv_" not in str(raised.value)


def test_digests_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare(first: bytes, second: bytes) -> bool:
        compared.append((first, second))
        return real(first, second)

    monkeypatch.setattr(callers_file, "INDEXED_BYTES", 0)  # as if both digests began alike
    monkeypatch.setattr(callers_file.hmac, "compare_digest", compare)
    digests = [api_keys.digest(KEY), api_keys.digest(OTHER_KEY)]
    callers = callers_file.Callers([(Caller("a"), (digests[0],)), (Caller("b"), (digests[1],))])
    for key, name in ((KEY, "a"), (OTHER_KEY, "b"), ("mv_wrong", None)):
        compared.clear()
        found = callers.owner(key)
        assert (found and found.name) == name
        assert compared == [(each, api_keys.digest(key)) for each in digests], "no early exit"


def test_a_certificate_names_its_caller_and_a_key_comes_first(access: AccessControl) -> None:
    assert access.identify([], ["robot", "robot.local"]).name == "certificate:robot"
    assert access.identify([("x-api-key", KEY)], ["proxy"]).name == "camera"
    for name in ("\t", "a\nb", "ключ", "x" * 200):
        with pytest.raises(Unauthenticated):
            access.identify([], [name])


def test_the_file_limits_callers_without_keys(tmp_path: Path, clock: Clock) -> None:
    stated = [caller("certificate:robot", models=["m"]), caller("anonymous", inflight_requests=2)]
    settings = local_settings(callers_file=write_callers(tmp_path / "c.json", *stated), caller_burst=9)
    access = AccessControl.from_settings(settings, clock)
    assert access.identify([], ["robot"]).models == {"m"}
    assert access.identify([], ["another"]).models is None
    anonymous = access.identify([])
    assert (anonymous.name, anonymous.limits) == (ANONYMOUS_NAME, CallerLimits(burst=9, inflight_requests=2))


@pytest.mark.parametrize(
    ("anonymous", "host", "allowed"),
    [
        ("loopback", "127.0.0.1", True),
        ("loopback", "127.9.9.9", True),
        ("loopback", "::1", True),
        ("loopback", "[::1]", True),
        ("loopback", "localhost", True),
        ("loopback", "0.0.0.0", False),
        ("loopback", "::", False),
        ("loopback", "192.168.1.2", False),
        ("loopback", "localhost.example.org", False),
        ("allow", "0.0.0.0", True),
        ("deny", "127.0.0.1", False),
    ],
)
def test_whether_anonymous_calls_are_answered(
    file: Path, clock: Clock, anonymous: str, host: str, allowed: bool
) -> None:
    settings = local_settings(callers_file=file, anonymous=anonymous, grpc_host=host)
    access = AccessControl.from_settings(settings, clock)
    assert access.allows_anonymous is allowed
    if allowed:
        assert access.identify([]).anonymous
    else:
        with pytest.raises(Unauthenticated, match="x-api-key"):
            access.identify([])


@pytest.mark.parametrize("overrides", [{"grpc_host": "0.0.0.0"}, {"anonymous": "deny"}])
def test_a_server_that_nobody_could_call_does_not_start(clock: Clock, overrides: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"^nobody could call: [^\n]*mobilevision keys new[^\n]*$"):
        AccessControl.from_settings(local_settings(**overrides), clock)
    AccessControl.from_settings(local_settings(**overrides, access_keys=(f"a:{'0' * 64}",)), clock)


def test_without_keys_headers_are_ignored_as_a_mesh_may_send_its_own(clock: Clock) -> None:
    access = AccessControl.from_settings(local_settings(), clock)
    assert access.identify([("authorization", "Basic abc"), ("x-api-key", KEY)]).anonymous


def test_keys_of_the_setting_need_no_file(clock: Clock) -> None:
    digest = api_keys.digest(KEY).hex()
    access = AccessControl.from_settings(local_settings(access_keys=(f"camera:{digest}",)), clock)
    assert access.identify([("x-api-key", KEY)]).name == "camera"


def test_a_key_in_place_of_its_digest_is_not_quoted() -> None:
    with pytest.raises(SettingsError, match="entry 1 is not NAME:SHA256") as raised:
        load(access_keys=(f"camera:{KEY}",))
    assert KEY not in str(raised.value)


def test_settings_with_keys_travel_to_gateway_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in as_environment(Settings(access_keys=(f"camera:{'0' * 64}",), anonymous="deny")).items():
        monkeypatch.setenv(name, value)
    assert load().access_keys == (f"camera:{'0' * 64}",)
    assert load().anonymous == "deny"


def test_the_file_is_read_again_and_a_key_ends_when_it_is_taken_out(
    access: AccessControl, file: Path, clock: Clock
) -> None:
    write_callers(file, caller("camera", "mv_new"))
    assert access.identify([("x-api-key", KEY)]).name == "camera", "looked at once a second"
    clock.now += LOOK_SECONDS
    assert access.identify([("x-api-key", "mv_new")]).name == "camera"
    with pytest.raises(Unauthenticated):
        access.identify([("x-api-key", KEY)])


def test_a_malformed_file_keeps_the_last_good_one_and_is_logged_once(
    access: AccessControl, file: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def looked() -> str:
        clock.now += LOOK_SECONDS
        access.identify([])
        return access.identify([("x-api-key", KEY)]).name

    for content in ("{", '{"callers": [{"name": "mv_secret"}]}', " " * (MOST_BYTES + 1), None):
        if content is None:
            file.unlink()
        else:
            file.write_text(content)
        caplog.clear()
        assert (looked(), looked(), looked()) == ("camera", "camera", "camera")
        [line] = caplog.records
        assert line.levelname == "ERROR"
        assert str(file) in line.getMessage()
        assert "mv_" not in line.getMessage()
    caplog.clear()
    write_callers(file, caller("camera", KEY))
    assert (looked(), looked()) == ("camera", "camera")
    assert [line.levelname for line in caplog.records] == ["INFO"]


@pytest.mark.parametrize("content", [None, "{", "[]", '{"callers": [{"name": "a"}]}'])
def test_a_bad_file_is_told_at_start_in_one_line(tmp_path: Path, clock: Clock, content: str | None) -> None:
    file = tmp_path / "callers.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingsError, match=r"^[^\n]*callers[^\n]*$"):
        AccessControl.from_settings(local_settings(callers_file=file), clock)
