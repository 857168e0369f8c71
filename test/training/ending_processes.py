"""Workers of a launch of which one ends; imports nothing, since each process does."""

import os
import signal
import sys
import time


def end(cmd: list[str]) -> None:
    """End the process of rank 1 as ``cmd`` says; the other one waits for long."""
    if os.environ["RANK"] != "1":
        time.sleep(600)
    elif cmd == ["kill"]:
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        print("error: no such file", file=sys.stderr)
        sys.exit(1)
