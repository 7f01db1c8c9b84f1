"""Hold a program and everything it starts on a leash: `python -I -S leash.py COMMAND...`, run by `service.embedded`.

Starts COMMAND in this process's own group, passes SIGTERM on to it, and kills the whole group as soon as COMMAND ends
or standard input closes. The pipe closes by itself when the gateway dies, however it dies, so neither the JVM nor a
hung Python worker can outlive it. Standard library only; never imported.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(command: list[str]) -> None:
    """Run `command` to its end; never returns, because the group that is killed includes this process."""
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
    # preexec_fn is unsafe only beside other threads, and there are none here.
    linux = sys.platform == "linux"
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent if linux else None)  # noqa: PLW1509
    passed_on = False
    while child.poll() is None:
        if terminated and not passed_on:
            child.terminate()
            passed_on = True
        ready, _, _ = select.select([0, wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
        if 0 in ready and not os.read(0, 4096):
            print("leash: the gateway is gone", flush=True)
            break
    print(f"leash: the program's exit status is {child.poll()}", flush=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
