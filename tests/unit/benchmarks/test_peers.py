import base64
import json

import pytest
from fakes import toy_card, toy_run

from benchmarks import report
from benchmarks.machine import ABSENT
from benchmarks.pairs import UNKNOWN, Pair
from benchmarks.peers import PEERS, Peer, environments, model
from benchmarks.peers.config import VARIABLE, PeerConfig
from benchmarks.peers.environments import PeerUnavailable, python_of
from benchmarks.systems import agree, answered_by
from benchmarks.target import picture
from service.pb.mobilevision.v1 import vision_pb2


def test_the_environment_passes_the_configuration_to_the_peer(monkeypatch):
    config = PeerConfig(
        "/model",
        workers=2,
        threads=1,
        max_batch=16,
        max_wait_ms=5,
        port=8000,
        timeout_seconds=0.2,
        engine="openvino",
        dtype="bfloat16",
    )
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


def test_a_peer_with_its_own_openvino_is_refused_where_openvino_is_missing(monkeypatch):
    monkeypatch.setattr(environments, "package_version", lambda name: ABSENT if name == "openvino" else "1.0")
    own = next(peer for peer in PEERS if peer.own_engine == "openvino")
    with pytest.raises(PeerUnavailable, match=r"mobilevision\[openvino\]"):
        python_of(own)


def test_a_peer_has_our_versions_of_what_the_amount_of_work_depends_on(monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(environments, "CACHE", tmp_path)
    monkeypatch.setattr(environments, "_run", lambda command, peer: made(tmp_path, command, commands))
    versions = {"torch": "2.13.0+cpu", "openvino": "2026.4.1"}
    monkeypatch.setattr(environments, "package_version", lambda name: versions.get(name, ABSENT))
    python_of(Peer("p", "p", "p", ("p==1",)))
    install = commands[-1]
    assert {"torch==2.13.0", "openvino==2026.4.1", "p==1"} <= set(install)
    assert not [word for word in install if ABSENT in word]


def made(folder, command, commands):
    (folder / "venvs" / "p").mkdir(parents=True, exist_ok=True)
    commands.append(command)


def test_every_system_has_a_column():
    assert {peer.name for peer in PEERS} | {"mobilevision"} == set(report.SYSTEMS)


@pytest.mark.parametrize(
    ("engine", "dtype", "pair"),
    [
        ("torchserve/openvino", "bfloat16", Pair("openvino", "bfloat16")),  # ours
        ("openvino", "float32", Pair("openvino", "float32")),  # a peer
        ("torchserve", "", UNKNOWN),  # the worker did not say
        ("", "", UNKNOWN),
    ],
)
def test_a_reply_says_what_computed_it(engine, dtype, pair):
    used = vision_pb2.ModelUsed(engine=engine, dtype=dtype)
    assert answered_by(vision_pb2.ClassifyResponse(model=used)) == pair


def test_a_peer_runs_the_asked_pair_and_its_replies_say_what_really_ran(monkeypatch, tmp_path):
    (tmp_path / "card.json").write_text(toy_card().to_json())
    asked = []

    class Runner:
        engine, dtype_name = "torchscript", "float32"  # the worker refused what was asked

        def run(self, rows):
            return toy_run("toy_classify", rows)

    monkeypatch.setattr(model, "load", lambda folder, gpu_id, options: asked.append(options) or Runner())
    config = PeerConfig(str(tmp_path), 1, 2, 16, 5, 8000, 1.0, engine="openvino", dtype="bfloat16")
    peer = model.PeerModel(config)
    (reply,) = peer.answer([peer.decode(picture())])
    message = vision_pb2.ClassifyResponse.FromString(reply)
    assert (asked[0].engine, asked[0].dtype, asked[0].threads) == ("openvino", "bfloat16", 2)
    assert answered_by(message) == Pair("torchscript", "float32")
    assert len(message.labels) == 3


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
