"""The worker processes of a TorchServe on this machine.

In: a process number that TorchServe reported, and TorchServe's run directory. Out: a process that is ended, if it is a
worker of that TorchServe. A number may belong to another process by now, or to another namespace.
"""

import os
import signal
from pathlib import Path

_WORKER = b"model_service_worker"


def end_worker(pid: int, run: Path, *, processes: Path = Path("/proc")) -> bool:
    """Kill the process if it is a worker of the TorchServe whose run directory is `run`. Returns whether it was."""
    if pid <= 1:
        return False
    try:
        process = os.pidfd_open(pid)  # unlike the number, it never names another process
    except (OSError, AttributeError):
        return False
    try:
        command = (processes / str(pid) / "cmdline").read_bytes()
        # A worker listens at a socket in the run directory.
        ours = _WORKER in command and os.fsencode(f"{run}/") in command
        if ours:
            signal.pidfd_send_signal(process, signal.SIGKILL)
    except OSError:  # it has ended, or it is another user's
        return False
    finally:
        os.close(process)
    return ours
