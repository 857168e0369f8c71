"""One way to tell a user what is wrong: a sentence on stderr and a non-zero exit."""

from __future__ import annotations

import sys
from collections.abc import Callable

FULL = (
    "the memory is full: take a smaller batch (batch_bins of the config in training, "
    "--batch_size in decoding); `speechllm estimate --config FILE --gpu GIB` tells "
    "what a training needs and what would fit"
)


class UserError(Exception):
    """Something the user can mend; the message names the place and the remedy."""


def run_main(main: Callable[[], int | None]) -> None:
    """Run a command line and turn the errors a user can mend into one line.

    ``UserError``, a full disk or unreadable file (``OSError``) and a full GPU end the
    process with status 1 and no traceback; an interrupt ends it with 130; all else is a
    defect of ours and keeps its traceback.
    """
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except MemoryError:
        print(f"error: {FULL}", file=sys.stderr)
    except RuntimeError as error:  # torch's OutOfMemoryError is one
        if type(error).__name__ != "OutOfMemoryError":
            raise
        reason = str(error).splitlines()[0]
        print(f"error: {FULL} ({reason})", file=sys.stderr)
    except OSError as error:
        if error.errno is None:
            raise
        place = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror}{place}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    sys.exit(1)
