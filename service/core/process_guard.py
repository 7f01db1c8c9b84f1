"""Runs a program so that it cannot outlive its parent: `python -I -S process_guard.py COMMAND...`.

In: a command line, and standard input from the parent. Starts COMMAND in this process's own group and forwards SIGTERM
to it. Kills the whole group as soon as COMMAND ends or standard input closes. That pipe closes when the parent dies,
however it dies, so neither a JVM nor a hung Python worker can outlive the gateway. Needs only the standard library.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(command: list[str]) -> None:
    """Run `command` until it ends. Never returns, because the killed process group includes this process."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    terminated = False

    def on_terminate(_signal: int, _frame: object) -> None:
        nonlocal terminated
        terminated = True

    signal.signal(signal.SIGTERM, on_terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # preexec_fn is unsafe in programs with several threads. This one has a single thread.
    linux = sys.platform == "linux"
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent if linux else None)  # noqa: PLW1509
    forwarded = False
    while child.poll() is None:
        if terminated and not forwarded:
            child.terminate()
            forwarded = True
        ready, _, _ = select.select([0, wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
        if 0 in ready and not os.read(0, 4096):
            print("process guard: the gateway is gone", flush=True)
            break
    print(f"process guard: the exit status of the program is {child.poll()}", flush=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
