"""Run a function of this project in a fresh process with a fixed hash seed. In: its name and a folder with its job.

TorchScript numbers class names through the life of a process, and writes constants in the order of a set of strings.
In a fresh process with a fixed hash seed, equal jobs give equal bytes.
"""

import subprocess
import sys
from pathlib import Path

from model_store.build.errors import ExportError

FAILURE = "failure.txt"  # in the folder: the reason, where the function could tell one


def run(function: str, folder: Path, *, subject: str, timeout_seconds: float) -> None:
    """Call `function`, written `module:name`, with the path of the folder as text, and wait for its end.

    Raises `ExportError`, which begins with `subject`; its `detail` is the traceback of that process.
    """
    module, _, name = function.partition(":")
    program = f"import sys, {module}; {module}.{name}(sys.argv[1])"
    try:
        done = subprocess.run(
            ["env", "PYTHONHASHSEED=0", sys.executable, "-c", program, str(folder)],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"{subject} took over {timeout_seconds:.0f} s") from error
    if done.returncode != 0:
        failure = folder / FAILURE
        reason = failure.read_text() if failure.is_file() else f"its process ended with status {done.returncode}"
        raise ExportError(f"{subject} failed: {reason}", detail=done.stderr.strip())
