"""Outputs of ``speechllm transcribe``: a stream, a file, or a folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from speechllm.inference.folder_output import FolderOutput
from speechllm.inference.recordings import Recording, output_paths
from speechllm.inference.resumable_output import (
    JOURNAL,
    FileOutput,
    StreamOutput,
    unwritable,
)
from speechllm.utils.errors import UserError
from speechllm.utils.names import safe_file_name


@contextmanager
def open_output(
    recordings: Sequence[Recording], output: str | None, form: str
) -> Iterator[StreamOutput | FileOutput | FolderOutput]:
    """Yield the output of some recordings.

    Args:
        output: file or folder, see :func:`speechllm.inference.recordings.output_paths`;
            None for standard output. A pipe or device is written without a journal.
        form: one of ``speechllm.inference.output_formats.FORMATS``.

    Raises:
        UserError: the output cannot be written or is one of the recordings.
    """
    files = output_paths(recordings, output, form)
    if output is None:
        sys.stdout.reconfigure(encoding="utf-8")
        yield StreamOutput(sys.stdout)
        return
    if files is None and (os.path.isdir(output) or output.endswith("/")):
        raise UserError(f"--output {output}: this is a folder; name a file")
    if files is None and os.path.exists(output) and not os.path.isfile(output):
        with open_special_file(output) as stream:
            yield StreamOutput(stream)
        return
    place = Path(os.path.realpath(output))
    folder = place.parent if files is None else place
    paths = [place] if files is None else [p for f in files for p in f.values()]
    try:
        for parent in dict.fromkeys([folder, *(p.parent for p in paths)]):
            parent.mkdir(parents=True, exist_ok=True)
        place.exists()  # raises if the name is too long
    except OSError as error:
        raise unwritable(output, error) from None
    inputs = {os.path.realpath(r.source) for r in recordings if "\0" not in r.source}
    for path in paths:
        if os.path.realpath(path) in inputs:
            raise UserError(f"--output {output}: {path} is also a recording to read")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise UserError(f"--output {output}: cannot be written: no permission")
    states = [recording.state() for recording in recordings]
    found: FileOutput | FolderOutput
    if files is None:
        journal = folder / safe_file_name(place.name, JOURNAL)
        found = FileOutput([place] * len(recordings), journal, states)
    else:
        found = FolderOutput(files, Path(output), states)
    try:
        yield found
        found.finish()
    finally:
        found.close()


def open_special_file(path: str) -> IO[str]:
    """Open a pipe or device, such as ``/dev/null``, for writing."""
    try:
        return open(path, "w", encoding="utf-8")
    except OSError as error:
        raise unwritable(path, error) from None
