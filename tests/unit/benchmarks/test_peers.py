import base64
import json

import pytest

from benchmarks.peers import PEERS, Peer
from benchmarks.peers.config import VARIABLE, PeerConfig
from benchmarks.peers.environments import PeerUnavailable, python_of
from benchmarks.systems import agree
from service.pb.mobilevision.v1 import vision_pb2


def test_the_environment_passes_the_configuration_to_the_peer(monkeypatch):
    config = PeerConfig("/model", workers=2, threads=1, max_batch=16, max_wait_ms=5, port=8000, timeout_seconds=0.2)
    environment = config.to_environment()
    assert environment["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv(VARIABLE, environment[VARIABLE])
    assert PeerConfig.from_environment() == config


def test_every_peer_gets_the_same_picture():
    for peer in PEERS:
        body = peer.body(b"picture")
        if peer.json_field is not None:
            text = json.loads(body)[peer.json_field]
            body = base64.b64decode(text[0] if peer.json_lists else text)
        assert body == b"picture"


def test_a_reply_is_unwrapped_as_its_peer_wraps_it():
    lists = Peer("p", "p", "p", (), json_field="images", json_lists=True)
    assert lists.reply(json.dumps([base64.b64encode(b"reply").decode()]).encode()) == b"reply"
    assert Peer("p", "p", "p", ()).reply(b"reply") == b"reply"


def test_every_requirement_is_pinned():
    assert all("==" in requirement for peer in PEERS for requirement in peer.requirements)


def test_the_error_of_a_failed_installation_contains_the_reason(monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.peers.environments.CACHE", tmp_path)
    monkeypatch.setattr("benchmarks.peers.environments.sys.executable", "/bin/false")
    with pytest.raises(PeerUnavailable, match="ghost"):
        python_of(Peer("ghost", "ghost", "ghost", ("ghost==1",)))


def label(number):
    return vision_pb2.Label(id=number)


@pytest.mark.parametrize("scores_differ", [False, True])
def test_answers_agree_by_their_best_label(scores_differ):
    one = vision_pb2.ClassifyResponse(labels=[vision_pb2.Label(id=1, score=0.5), label(2)])
    other = vision_pb2.ClassifyResponse(labels=[vision_pb2.Label(id=1, score=0.4 if scores_differ else 0.5), label(3)])
    assert agree(one, other)
    assert not agree(one, vision_pb2.ClassifyResponse(labels=[label(2), label(1)]))
    assert not agree(one, vision_pb2.ClassifyResponse())


def test_boxes_agree_to_a_pixel():
    def reply(x_min):
        box = vision_pb2.Box(x_min=x_min, y_min=0, x_max=9, y_max=9)
        return vision_pb2.DetectResponse(detections=[vision_pb2.Detection(box=box, label=label(1))])

    assert agree(reply(1.1), reply(1.2))
    assert not agree(reply(1.1), reply(3.0))
    assert not agree(reply(1.1), vision_pb2.DetectResponse())
    assert agree(vision_pb2.DetectResponse(), vision_pb2.DetectResponse())
