from benchmarks.load import read_h2load_log
from benchmarks.target import Target

TARGET = Target("http", "nowhere", 1, "/", b"", reply_bytes=153)


def printed(body_bytes):
    return f"traffic: 1.51KB (1544) total, 768B (768) headers (space savings 0.00%), 612B ({body_bytes}) data\n"


def test_statuses_come_from_the_log():
    log = "1000\t200\t2500\n1001\t503\t100\n1002\t-1\t100\n"
    assert read_h2load_log(log, printed(999), TARGET, clients=1, warm_up=0.1) == ([0.0025], 2)


def test_status_0_counts_as_answered_only_with_bodies_of_the_right_length():
    log = "1000\t0\t2000\n" * 10
    for bodies in (9, 10, 11):
        assert read_h2load_log(log, printed(bodies * 153), TARGET, clients=1, warm_up=0.1) == ([0.002] * 10, 0)
    assert read_h2load_log(log, printed(10 * 70), TARGET, clients=1, warm_up=0.1) == ([], 10)


def test_bytes_of_a_faster_warm_up_are_allowed():
    log = "1000\t0\t2000\n" * 100
    assert read_h2load_log(log, printed(130 * 153), TARGET, clients=1, warm_up=0.17) == ([0.002] * 100, 0)
    assert read_h2load_log(log, printed(300 * 153), TARGET, clients=1, warm_up=0.17) == ([], 100)


def test_an_empty_log_has_no_answers():
    assert read_h2load_log("", printed(0), TARGET, clients=1, warm_up=0.1) == ([], 0)
