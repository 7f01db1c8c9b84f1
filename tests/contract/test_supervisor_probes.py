"""The supervisor's HTTP port in front of fake gateway processes, on real ports."""

import contextlib
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from service.frontends.http.probe_server import ProbeServer
from service.frontends.http.probes import STUCK_LOOP_SECONDS, Answer, Heartbeat
from service.frontends.http.supervisor_probes import SupervisorProbes
from service.observability.metrics import Metrics


@dataclass
class Said:
    """`Probes` of a gateway process that is told what to say."""

    alive: bool = True
    not_ready: str = ""
    draining: bool = False

    def livez(self) -> Answer:
        return Answer.text(self.alive, "ok" if self.alive else "the event loop has been stuck for 11 s")

    def readyz(self) -> Answer:
        ready = not self.not_ready and not self.draining
        not_ready = {"toy": self.not_ready} if self.not_ready else {}
        return Answer.json(ready, {"ready": ready, "draining": self.draining, "not_ready": not_ready})

    def metrics(self, accept: str) -> Answer:
        page = b"# HELP up_total Up.\n# TYPE up_total counter\nup_total 1.0\n"
        return Answer(HTTPStatus.OK, Metrics.content_type(accept), page)


@contextlib.contextmanager
def port_of(*replicas: Said | str | None, heartbeat: Heartbeat | None = None) -> Iterator[str]:
    """The public HTTP port. A replica that is None is being started; a string is an address."""
    with contextlib.ExitStack() as stack:
        addresses: dict[int, str | None] = {}
        for number, replica in enumerate(replicas):
            if isinstance(replica, Said):
                server = ProbeServer(host="127.0.0.1", port=0, probes=replica)
                stack.callback(server.close)
                addresses[number] = f"127.0.0.1:{server.port}"
            else:
                addresses[number] = replica
        probes = SupervisorProbes(replicas=lambda: addresses, metrics=Metrics(), heartbeat=heartbeat or Heartbeat())
        front = ProbeServer(host="127.0.0.1", port=0, probes=probes)
        stack.callback(front.close)
        yield f"127.0.0.1:{front.port}"


def get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def readyz(address: str) -> tuple[int, Mapping[str, object]]:
    status, body = get(address, "/readyz")
    return status, json.loads(body)


def test_all_processes_are_well() -> None:
    with port_of(Said(), Said()) as address:
        assert get(address, "/livez") == (200, "ok\n")
        assert readyz(address) == (200, {"ready": True, "draining": False, "not_ready": {}})
        assert get(address, "/nothing")[0] == 404


def test_livez_names_processes_that_are_stuck_or_missing_and_fails_when_none_is_left() -> None:
    with port_of(Said(alive=False), None) as address:
        assert get(address, "/livez")[0] == 503
    with port_of(Said(), Said(alive=False), None) as address:
        assert get(address, "/livez") == (
            200,
            "gateway process 1: the event loop has been stuck for 11 s\ngateway process 2: no answer\n",
        )


def test_a_silent_process_is_named_and_does_not_hide_the_others() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        port_of(f"127.0.0.1:{silent.getsockname()[1]}", Said()) as address,
    ):
        assert get(address, "/livez") == (200, "gateway process 0: no answer\n")
        assert readyz(address) == (200, {"ready": True, "draining": False, "not_ready": {"0": "no answer"}})
        page = get(address, "/metrics")[1]
    assert 'up_total{gateway_process="1"} 1.0' in page
    assert 'gateway_process="0"' not in page


def test_livez_includes_the_event_loop_of_the_supervisor() -> None:
    now = 0.0
    heartbeat = Heartbeat(lambda: now)
    with port_of(Said(), heartbeat=heartbeat) as address:
        now = STUCK_LOOP_SECONDS
        assert get(address, "/livez") == (503, "supervisor: the event loop has been stuck for 10 s\n")
        heartbeat.beat()
        assert get(address, "/livez")[0] == 200


def test_one_ready_process_is_enough_and_the_others_give_their_reasons() -> None:
    with port_of(Said(not_ready="its worker died"), Said()) as address:
        assert readyz(address) == (
            200,
            {"ready": True, "draining": False, "not_ready": {"0": {"toy": "its worker died"}}},
        )
    with port_of(Said(not_ready="its worker died"), None) as address:
        status, body = readyz(address)
        assert (status, body["ready"]) == (503, False)
        assert body["not_ready"] == {"0": {"toy": "its worker died"}, "1": "no answer"}


def test_a_ready_process_names_the_models_that_do_not_answer() -> None:
    one_broken = Answer.json(True, {"ready": True, "draining": False, "not_ready": {"toy": "its worker died"}})

    class OneBroken(Said):
        def readyz(self) -> Answer:
            return one_broken

    with port_of(OneBroken(), Said()) as address:
        assert readyz(address) == (
            200,
            {"ready": True, "draining": False, "not_ready": {"0": {"toy": "its worker died"}}},
        )


def test_draining_is_not_ready() -> None:
    with port_of(Said(draining=True), Said(draining=True)) as address:
        assert readyz(address) == (503, {"ready": False, "draining": True, "not_ready": {"0": {}, "1": {}}})


def test_the_page_has_every_process_and_the_supervisor() -> None:
    with port_of(Said(), Said()) as address:
        page = get(address, "/metrics")[1]
    assert page.count("# TYPE up_total counter") == 1
    assert 'up_total{gateway_process="0"} 1.0\nup_total{gateway_process="1"} 1.0\n' in page
    assert 'mobilevision_gateway_restarts_total{gateway_process="supervisor"} 0.0' in page
