"""Processes that tests start: waiting for them, and whether they run."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from speechllm.utils.errors import UserError


def in_child(function) -> int:
    """Run a function in a fork; return its exit status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 1)
        except UserError as error:
            os.write(2, f"error: {error}\n".encode())
            os._exit(1)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(99)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status)


def end_group() -> None:
    """Send SIGTERM to all processes of this one's group, as job runners do."""
    # by another process, since workers end without an error for their parent
    command = ["kill", "-TERM", "--", f"-{os.getpid()}"]
    subprocess.run(command, start_new_session=True, check=True)
    time.sleep(1)  # in which PyTorch would raise an error for an ended worker


def wait_until(condition, seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
