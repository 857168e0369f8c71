"""User errors: one line on stderr and a non-zero exit status."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable

from speechllm.utils.names import one_line

OUT_OF_MEMORY = (
    "the memory is full: use a smaller batch (batch_bins of the config in training, "
    "--batch_size in decoding); `speechllm estimate --config FILE --gpu GIB` prints "
    "the memory that a training needs and settings that fit"
)

#: Packages of the extras in setup.py, by the names of their modules
EXTRAS = {
    "train": "espeakng_loader espnet2 jiwer lhotse matplotlib sacrebleu sklearn "
    "tensorboard",
    "lightning": "lightning",
    "deepspeed": "deepspeed",
    "demo": "gradio",
    "serve": "fastapi prometheus_client python_multipart uvicorn",
}


class UserError(Exception):
    """An error that the user can fix; the message names the place and the remedy."""


class OutOfMemoryError(UserError):
    """A ``UserError`` about too little memory, which more than one utterance meets."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for full memory of the machine or of a GPU."""
    # by name, since torch is not imported here
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def reason_of(error: BaseException) -> str:
    """Return the message of an error in one line."""
    return " ".join(str(error).split())


def describe_error(error: BaseException) -> str:
    """Return an error as one line, to be listed with those of other recordings.

    An error that is not a ``UserError`` or an ``OSError`` is named as unexpected.
    """
    if isinstance(error, UserError):
        message = str(error)
    elif isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        message = f"{place}{error.strerror}"
    else:
        message = f"unexpected {type(error).__name__}: {error} (--debug shows where)"
    return " ".join(message.split())


def without_worker_traceback(error: UserError) -> UserError:
    """Return an error without the traceback of a worker, which PyTorch prepends."""
    return UserError(str(error).rpartition("UserError: ")[2].strip())


def run_main(main: Callable[[], int | None]) -> None:
    """Run a command line and print errors that the user can fix as one line.

    ``UserError``, a full disk, an unreadable file (``OSError``) and a full memory exit
    with status 1 and no traceback, as does a package of ``EXTRAS`` that is not
    installed; an interrupt exits with status 130 and SIGTERM with
    143, after temporary files are removed. All other exceptions are bugs and keep their
    traceback.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {reason_of(error)}", file=sys.stderr)
    except ModuleNotFoundError as error:
        package = str(error.name).split(".")[0]
        extras = [name for name, found in EXTRAS.items() if package in found.split()]
        if not extras:
            raise
        remedy = f"pip install 'speechllm[{extras[0]}]'"
        print(f"error: {package} is not installed: {remedy}", file=sys.stderr)
    except MemoryError:
        print(f"error: {OUT_OF_MEMORY}", file=sys.stderr)
    except RuntimeError as error:  # includes torch's OutOfMemoryError
        if not is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
        print(f"error: {OUT_OF_MEMORY} ({reason})", file=sys.stderr)
    except OSError as error:
        if error.errno is None:
            raise
        place = f": {error.filename}" if error.filename else ""
        print(one_line(f"error: {error.strerror}{place}"), file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        sys.exit(130)
    sys.exit(1)


def _exit_on_signal(number: int, frame: object) -> None:
    """Unwind the stack, so that temporary files are removed."""
    sys.exit(128 + number)
