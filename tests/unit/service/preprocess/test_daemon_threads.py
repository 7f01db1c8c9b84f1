"""Threads that do not keep a process from ending."""

import subprocess
import sys
import threading

from service.preprocess.daemon_threads import DaemonThreads

STUCK = """
import threading
from service.preprocess.daemon_threads import DaemonThreads
threads, entered = DaemonThreads(1, "decode"), threading.Event()
threads.submit(lambda: (entered.set(), threading.Event().wait()))
entered.wait()
print(threads.close(0.0))
"""


def test_a_process_ends_while_work_runs_for_ever() -> None:
    ended = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.strip() == "False"


def test_work_runs_in_as_many_threads_as_stated_and_goes_on_after_an_exception() -> None:
    threads, barrier, done = DaemonThreads(2, "decode"), threading.Barrier(3), threading.Semaphore(0)

    def fail() -> None:
        raise RuntimeError("a bug")

    threads.submit(fail)
    threads.submit(fail)
    for _ in range(2):
        threads.submit(lambda: barrier.wait(60))
    barrier.wait(60)  # both threads run at once, after their exceptions
    threads.submit(done.release)
    assert done.acquire(timeout=60)
    assert threads.close(60)
