"""A folder of outputs of ``speechllm transcribe``, one file for each recording.

A hidden journal in the folder has one JSON line for each recording that is complete,
written after its files: a digest of the settings, the state of the recording, and the
checksums of the files. The same command skips these recordings, also when all are done,
and leaves their files as they are: a user may have corrected them. Files that other
settings replace are kept as ``<file>.previous`` if they are not as they were written.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from speechllm.inference.resumable_output import Entry, open_locked, unwritable
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open, previous_name

JOURNAL_NAME = ".speechllm_transcribe.jsonl"
_HEAD = {"written by": "speechllm transcribe"}


class FolderOutput:
    """One or more files for each recording.

    Attributes:
        entries: output of each finished recording, by index.
        kept: files with earlier content.
        forms: formats to write.
    """

    def __init__(
        self,
        files: Sequence[Mapping[str, Path]],
        folder: Path,
        states: Sequence[str | None],
    ):
        """Prepare the output; nothing is written yet.

        Args:
            files: of each recording, by format.
            folder: that all of them are in.
            states: of each recording; None: it is never taken from the journal.
        """
        self.entries: dict[int, Entry] = {}
        self.kept: list[Path] = []
        self.forms = tuple(files[0])
        self._files, self._states = files, states
        self._journal = folder / JOURNAL_NAME
        self._stream: IO[bytes] | None = None
        self._digest = ""
        self._written: dict[str, set[str]] = {}  # checksums by name of the file

    def resume(self, settings: dict[str, Any]) -> None:
        """Take the recordings that an earlier run with equal settings finished.

        Raises:
            UserError: a file of the user has the name of the journal, or another
                process writes it.
        """
        text = json.dumps(settings, sort_keys=True, default=str)
        self._digest = hashlib.sha256(text.encode()).hexdigest()
        try:
            stream = self._stream = open_locked(self._journal)
        except OSError as error:
            raise unwritable(self._journal, error) from None
        lines = stream.read().splitlines(keepends=True)
        if lines and _parse(lines[0]) != _HEAD:
            if lines[0].endswith(b"\n") or not _first_line().startswith(lines[0]):
                raise UserError(
                    f"{self._journal}: has the name of the journal, but is another "
                    "file; move it away"
                )
            lines = []
        whole, earlier = 0, {}
        for number, line in enumerate(lines):
            entry = _parse(line)
            if entry is None or not line.endswith(b"\n"):
                break  # cut off by a kill
            whole += len(line)
            if number:
                for name, digest in entry["files"].items():
                    self._written.setdefault(name, set()).add(digest)
                if entry["settings"] == self._digest:
                    earlier[entry["state"]] = entry
        stream.seek(whole)
        stream.truncate()
        if not whole:
            stream.write(_first_line())
        for index, state in enumerate(self._states):
            entry = earlier.get(state) if state is not None else None
            if entry is None or not entry["done"]:
                continue
            if all((self._journal.parent / name).exists() for name in entry["files"]):
                self.entries[index] = Entry(None, entry["error"])

    def write(self, index: int, entry: Entry) -> None:
        """Write the files of recording ``index``, then its line of the journal.

        Raises:
            UserError: they cannot be written.
        """
        assert self._stream is not None, "resume first"
        root = self._journal.parent
        digests: dict[str, str] = {}
        try:
            for form, text in entry.files.items():
                path = self._files[index][form]
                content = text.encode()
                name = path.relative_to(root).as_posix()
                digests[name] = hashlib.sha256(content).hexdigest()
                if path.exists() and not self._is_ours(path, name, digests[name]):
                    self.kept.append(previous_name(path))
                    shutil.copy2(path, self.kept[-1])
                with atomic_open(path, "wb") as stream:
                    stream.write(content)
            line = {
                "settings": self._digest,
                "state": self._states[index],
                "error": entry.error,
                "done": entry.done,
                "files": digests,
            }
            self._stream.write(json.dumps(line).encode() + b"\n")
            self._stream.flush()
        except OSError as error:
            place = error.filename or self._journal
            raise unwritable(place, error) from None
        self.entries[index] = entry

    def finish(self) -> None:
        """Leave the journal, by which the same command skips what is done."""

    def close(self) -> None:
        """Close the journal."""
        if self._stream is not None:
            with suppress(OSError):  # of a full disk, reported when it was written
                self._stream.close()

    def _is_ours(self, path: Path, name: str, digest: str) -> bool:
        """Return whether a file is as it was written, or equal to the new one."""
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        return found == digest or found in self._written.get(name, ())


def _first_line() -> bytes:
    return json.dumps(_HEAD).encode() + b"\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return a line of the journal; None if it is not one."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if entry == _HEAD:
        return entry
    keys = {"settings", "state", "error", "done", "files"}
    return entry if isinstance(entry, dict) and keys <= entry.keys() else None
