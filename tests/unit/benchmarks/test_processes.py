import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks import processes
from benchmarks.processes import DidNotStart, Group

ROOT = Path(__file__).parents[3]
# A child that leaves its parent and session, as daemons do, and uses CPU time.
DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open("daemon", "w").write(str(os.getpid()))
        while True:
            sum(range(10000))
    os._exit(0)
os.wait()
time.sleep(60)
"""


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def start(tmp_path, program):
    environment = {"PATH": os.environ["PATH"]}
    return Group([sys.executable, "-c", program], environment=environment, log=tmp_path / "log", cwd=tmp_path)


def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_detached_daemon_is_counted_paused_and_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_MOST_REST_SECONDS", 0.1)  # the daemon is never idle
    with start(tmp_path, DAEMON) as group:
        daemon = int(wait_for(lambda: (tmp_path / "daemon").exists() and (tmp_path / "daemon").read_text()))
        assert daemon in wait_for(lambda: daemon in group.members() and group.members())
        wait_for(lambda: group.cpu_seconds() >= 0.05)
        assert sum(process.pss_mib for process in group.memory()) > 1
        group.pause()
        wait_for(lambda: {state(pid) for pid in group.members()} == {"T"})
        spent = group.cpu_seconds()
        time.sleep(0.05)
        assert group.cpu_seconds() == spent
        group.resume()
        wait_for(lambda: group.cpu_seconds() > spent)
        group.pause()  # the end of the group must not wait for paused processes
    assert group.members() == []
    assert not Path(f"/proc/{daemon}").exists() or state(daemon) == "Z"


def test_the_error_of_an_ended_command_contains_its_output(tmp_path):
    with start(tmp_path, "raise SystemExit('no such model')") as group:
        wait_for(lambda: group.members() == [])
        with pytest.raises(DidNotStart, match="no such model"):
            group.check_alive()


def test_pending_work_is_finished_before_a_server_is_paused(tmp_path, monkeypatch):
    """Also on a machine that leaves it little CPU time."""
    monkeypatch.setattr(processes, "_MOST_REST_SECONDS", 300.0)
    monkeypatch.setattr(processes, "_IDLE_CPU_SHARE", 2.0)  # as if it had got less than its share
    program = """
import time
end = time.process_time() + 1
while time.process_time() < end:
    pass
open("done", "w").close()
time.sleep(60)
"""
    with start(tmp_path, program) as group:
        wait_for(lambda: group.cpu_seconds() > 0.2)
        group.pause()
        assert (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["/usr/bin/java", "-Xmn16m", "org.pytorch.serve.ModelServer"], "java"),
        (["/venv/bin/python3.11", "/venv/bin/mobilevision", "serve"], "mobilevision"),
        (["python", "-u", "/site-packages/ts/model_service_worker.py", "--sock-type"], "model_service_worker.py"),
        (["/venv/bin/python", "-m", "service.core.process_guard", "4"], "service.core.process_guard"),
        (["python", "-c", "print('/a/b')"], "python"),
        (["ray::IDLE", "", ""], "ray::IDLE"),
    ],
)
def test_a_process_has_the_name_of_its_program(command, name):
    assert processes.program(command) == name
