"""Which calls have a line in the access log, with a clock that the test moves."""

import logging

import pytest

from service.core.errors import Bug, Cancelled, QueueFull, ServiceError, TooManyRequests
from service.core.types import RequestRecord
from service.frontends.access_log import LINES_PER_SECOND, AccessLog


class World:
    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "service.access")
        self.now = 100.0
        self._log = AccessLog(lambda: self.now)
        self._caplog = caplog

    def end(self, error: ServiceError | None, times: int = 1) -> None:
        for _ in range(times):
            self._log.ended(RequestRecord(request_id="r", method="Classify"), error, 0.1)

    def lines(self) -> list[tuple[str | None, int | None]]:
        """Reason and number left out of the lines since the last look."""
        found = [(vars(line)["reason"], vars(line)["left_out"]) for line in self._caplog.records]
        self._caplog.clear()
        return found


@pytest.fixture
def world(caplog: pytest.LogCaptureFixture) -> World:
    return World(caplog)


def test_every_call_that_was_answered_or_failed_has_a_line(world: World) -> None:
    world.end(None, 50)
    world.end(Bug("b"), 50)
    assert world.lines() == [(None, None)] * 50 + [("BUG", None)] * 50


@pytest.mark.parametrize("error", [QueueFull("full"), Cancelled("gone")], ids=lambda error: error.reason)
def test_of_a_flood_a_few_lines_per_second_are_written_and_the_others_counted(
    world: World, error: ServiceError
) -> None:
    world.end(error, 1000)
    assert world.lines() == [(error.reason, None)] * LINES_PER_SECOND
    world.now += 0.9
    world.end(error)
    assert world.lines() == []
    world.now += 0.1
    world.end(error, 2)
    assert world.lines() == [(error.reason, 1000 - LINES_PER_SECOND + 1), (error.reason, None)]


def test_one_reason_does_not_hide_another(world: World) -> None:
    world.end(QueueFull("full"), 1000)
    world.lines()
    world.end(TooManyRequests("many"))
    world.end(None)
    assert world.lines() == [("TOO_MANY_REQUESTS", None), (None, None)]
