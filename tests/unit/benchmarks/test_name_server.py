import socket
import struct

from benchmarks.name_server import TTL_SECONDS, NameServer

A, AAAA = 1, 28


def query(name, kind=A, number=7):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", kind, 1)


def addresses(reply, asked):
    """The A records of a reply, parsed independently of the server's code."""
    number, flags, questions, answers, _, _ = struct.unpack_from(">6H", reply)
    assert (number, questions) == (7, 1)
    assert reply[12 : len(asked)] == asked[12:]
    at, found = len(asked), []
    for _ in range(answers):
        assert struct.unpack_from(">3HIH", reply, at) == (0xC00C, A, 1, TTL_SECONDS, 4)
        found.append(socket.inet_ntoa(reply[at + 12 : at + 16]))
        at += 16
    assert at == len(reply)
    return flags & 0xF, found


def test_the_name_resolves_to_its_current_addresses():
    with NameServer("pods.test") as names:
        host, _, port = names.target(50051).removeprefix("dns://").partition("/")[0].rpartition(":")
        asked = query("Pods.Test")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            for expected in ([], ["127.0.0.2", "127.0.0.3"], ["127.0.0.4"]):
                names.point(expected)
                client.sendto(asked, (host, int(port)))
                assert addresses(client.recv(512), asked) == (0, expected)
        assert names.asked == 3
        assert names.target(50051).endswith("/pods.test:50051")


def test_other_names_do_not_exist_and_other_types_are_empty():
    with NameServer("pods.test") as names:
        names.point(["127.0.0.2"])
        for asked, answer in ((query("pods.test", AAAA), (0, [])), (query("other.test"), (3, []))):
            assert addresses(names.answer(asked), asked) == answer
        assert names.asked == 0
