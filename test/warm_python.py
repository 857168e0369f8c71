"""Run a recipe's ``python3 -m …`` in forks of one process that has imported PyTorch.

A recipe starts a dozen Python processes, each of which spends seconds importing
PyTorch, ESPnet and transformers. Inside :func:`warm_python`, its shell scripts run the
same modules with the same arguments, working folder, environment and files, but in a
fork of a process with finished imports.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

IMPORTS = """
    espnet2.bin.launch jiwer matplotlib.figure peft
    soundfile soxr
    speechllm.inference.speech_to_text speechllm.models.nue_asr speechllm.training.task
    transformers.models.gpt_neox.modeling_gpt_neox
    transformers.models.hubert.modeling_hubert
""".split()
FUNCTION = """() {{
    if [ "${{1-}}" = -m ]; then "{python}" -SE "{file}" "{address}" "$@"
    else command python3 "$@"; fi
}}"""


@contextmanager
def warm_python(**variables: str) -> Iterator[dict[str, str]]:
    """Yield an environment in which bash runs ``python3 -m`` in forks.

    Args:
        **variables: added to the environment before libraries are imported.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        **variables,
    }
    with tempfile.TemporaryDirectory(prefix="warm-python-") as folder:
        address = f"{folder}/socket"
        server = subprocess.Popen([sys.executable, __file__, address], env=environment)
        try:
            while not os.path.exists(address):
                if server.poll() is not None:
                    raise RuntimeError("the warm interpreter did not start")
                time.sleep(0.1)
            names = {"python": sys.executable, "file": __file__, "address": address}
            yield {**environment, "BASH_FUNC_python3%%": FUNCTION.format(**names)}
        finally:
            server.terminate()
            server.wait()


def serve(address: str) -> None:
    """Import the libraries, then fork for each request until terminated."""
    import importlib

    for name in IMPORTS:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombie processes
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address + ".new")
        listener.listen(64)
        os.rename(address + ".new", address)
        while True:
            caller, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                run_request(caller)
            caller.close()


def run_request(caller: socket.socket) -> None:
    """Run the requested module in this process and send back its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, files, _, _ = socket.recv_fds(caller, 1 << 20, 3)
    folder, environment, arguments = json.loads(request)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    status = 1
    try:
        _, module, *sys.argv[1:] = arguments
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError):  # closed by the module
            stream.flush()
    caller.sendall(bytes([status & 255]))
    os._exit(status & 255)


def call(address: str, arguments: list[str]) -> int:
    """Send a request and return the exit status."""
    request = json.dumps([os.getcwd(), dict(os.environ), arguments]).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(address)
        socket.send_fds(server, [request], [0, 1, 2])
        status = server.recv(1)
    return status[0] if status else 1


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    else:
        sys.exit(call(sys.argv[1], sys.argv[2:]))
