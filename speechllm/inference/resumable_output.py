"""One output file of ``speechllm transcribe``, written so that a re-run resumes.

Each recording is written as soon as it is complete, first into a journal
(``<output>.resume``), then into the output file. The journal is a digest of the
settings, then one JSON line per recording with its text. A re-run with equal settings
takes the texts of recordings that have not changed from there. The journal is removed
when all recordings have a text.

An output file is written in place, so that it keeps its mode; earlier content that is
different is kept as ``<output>.previous``.
"""

from __future__ import annotations

import fcntl
import filecmp
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from speechllm.utils.errors import UserError
from speechllm.utils.io import previous_name

JOURNAL = ".resume"  # suffix


@dataclass(frozen=True)
class Entry:
    """The output of one recording.

    Attributes:
        text: in the output format; None if no file is written.
        error: message for the user, or None.
        done: a re-run does not transcribe it again.
        files: text of each format, in a folder of outputs.
    """

    text: str | None
    error: str | None = None
    done: bool = True
    files: dict[str, str] = field(default_factory=dict)


class StreamOutput:
    """Standard output, a pipe or a device: written once, never resumed."""

    forms: tuple[str, ...] = ()

    def __init__(self, stream: IO[str]):
        self.entries: dict[int, Entry] = {}
        self.kept: list[Path] = []
        self.stream = stream

    def resume(self, settings: dict[str, Any]) -> None:
        """Do nothing: there are no earlier texts."""

    def write(self, index: int, entry: Entry) -> None:
        """Write the text of recording ``index``."""
        self.entries[index] = entry
        self.stream.write(entry.text or "")
        self.stream.flush()


class FileOutput:
    """One output file of all recordings.

    Attributes:
        entries: output of each finished recording, by index.
        kept: files with earlier content.
    """

    forms: tuple[str, ...] = ()

    def __init__(
        self, paths: Sequence[Path], journal: Path, states: Sequence[str | None]
    ):
        """Prepare the output; nothing is written yet.

        Args:
            paths: output file of each recording.
            journal: path of the journal.
            states: of each recording; None: it is never taken from the journal.
        """
        self.entries: dict[int, Entry] = {}
        self.kept: list[Path] = []
        self._written: dict[int, Entry] = {}  # also those that are not done
        self._paths, self._states = paths, states
        self._members: dict[Path, list[int]] = {}
        for index, path in enumerate(paths):
            self._members.setdefault(path, []).append(index)
        self._journal, self._stream = journal, None
        self._head, self._whole = "", 0
        self._texts: set[bytes] = set()  # of the journal
        self._started: set[Path] = set()
        self._copies: list[tuple[Path, Path]] = []

    def resume(self, settings: dict[str, Any]) -> None:
        """Take the recordings that an earlier run with equal settings finished.

        Raises:
            UserError: a file of the user has the name of the journal.
        """
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        self._head = json.dumps({"settings": digest.hexdigest()}) + "\n"
        if not self._journal.is_file():
            return
        earlier: dict[str | None, Entry] = {}
        with open(self._journal, "rb") as stream:
            head = stream.readline()
            if not _is_head(head):
                raise UserError(
                    f"{self._journal}: has the name of the journal, but is another "
                    "file; move it away"
                )
            if head != self._head.encode():
                return
            self._whole = stream.tell()
            for raw in stream:
                try:
                    line = json.loads(raw)
                    entry = Entry(line["text"], line["error"], line["done"])
                except (ValueError, KeyError, TypeError):
                    break
                if not raw.endswith(b"\n"):
                    break
                earlier[line["state"]] = entry
                self._texts.add((entry.text or "").encode())
                self._whole += len(raw)
        for index, state in enumerate(self._states):
            entry = earlier.get(state) if state is not None else None
            if entry is not None:
                self._written[index] = entry
                if entry.done:
                    self.entries[index] = entry

    def write(self, index: int, entry: Entry) -> None:
        """Write the output of recording ``index`` into the journal and its file.

        Raises:
            UserError: it cannot be written; an earlier recording is never lost.
        """
        path = self._paths[index]
        try:
            stream = self._open_journal()
            line = {"state": self._states[index], **asdict(entry)}
            stream.write((json.dumps(line) + "\n").encode())
            stream.flush()
            if entry.text is not None:
                self._start(path)  # with the earlier entries
            written = [i for i in self._members[path] if i in self._written]
            in_order = index > max(written, default=-1)
            self.entries[index] = self._written[index] = entry
            if entry.text is None:
                return
            if in_order:
                with open(path, "ab") as file:
                    file.write(entry.text.encode())
            else:
                path.write_bytes(self._content(path))
        except OSError as error:
            raise unwritable(path, error) from None

    def finish(self) -> None:
        """Write what is missing; remove the journal unless a recording failed.

        Raises:
            UserError: a file cannot be written.
        """
        try:
            self._open_journal()
            for path, members in self._members.items():
                texts = [self.entries[i].text for i in members if i in self.entries]
                # a file of all recordings is written even if it is empty
                if len(self._members) == 1 or any(text is not None for text in texts):
                    self._start(path)
            for path, copy in self._copies:
                if filecmp.cmp(path, copy, shallow=False):
                    copy.unlink()
                else:
                    self.kept.append(copy)
            if all(entry.done for entry in self.entries.values()):
                self._journal.unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(self._paths[0], error) from None

    def close(self) -> None:
        """Close the journal."""
        if self._stream is not None:
            with suppress(OSError):  # of a full disk, reported when it was written
                self._stream.close()

    def _content(self, path: Path) -> bytes:
        found = (self._written[i] for i in self._members[path] if i in self._written)
        return "".join(entry.text or "" for entry in found).encode()

    def _start(self, path: Path) -> None:
        """Make the content of a file that of the entries; keep what it had before."""
        if path in self._started:
            return
        content = self._content(path)
        before = path.read_bytes() if path.exists() else b""
        if content.startswith(before):  # of an interrupted run, or nothing
            with open(path, "ab") as file:
                file.write(content[len(before) :])
        else:
            if not self._is_ours(before):
                self._keep(path)
            path.write_bytes(content)
        self._started.add(path)

    def _is_ours(self, content: bytes) -> bool:
        """Return whether a file has nothing but texts of the journal, the last cut."""
        *lines, rest = content.split(b"\n")
        return any(text.startswith(content) for text in self._texts) or (
            all(line + b"\n" in self._texts for line in lines)
            and any(text.startswith(rest) for text in self._texts)
        )

    def _keep(self, path: Path) -> None:
        """Copy a file to a name that is free."""
        copy = previous_name(path)
        shutil.copy2(path, copy)
        self._copies.append((path, copy))

    def _open_journal(self) -> IO[bytes]:
        """Return the journal, after the entries of the earlier run, locked."""
        if self._stream is not None:
            return self._stream
        path = self._paths[0]
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666
        stream = open_locked(self._journal, mode)
        stream.truncate(self._whole)
        stream.seek(self._whole)
        if not self._whole:
            stream.write(self._head.encode())
        self._stream = stream
        return stream


def open_locked(journal: Path, mode: int = 0o666) -> IO[bytes]:
    """Open a journal for reading and writing, locked.

    Raises:
        UserError: another process has locked it.
    """
    handle = os.open(journal, os.O_RDWR | os.O_CREAT, mode)
    stream = os.fdopen(handle, "r+b")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        raise UserError(
            f"{journal}: another process writes this output; wait for it, or give "
            "another --output"
        ) from None
    return stream


def _is_head(line: bytes) -> bool:
    """Return whether a line is the first one of a journal; it may be cut off."""
    try:
        content = json.loads(line or "{}")
    except ValueError:
        return line.startswith(b'{"settings": "') and not line.endswith(b"\n")
    return isinstance(content, dict) and content.keys() <= {"settings"}


def unwritable(path: str | Path, error: OSError) -> UserError:
    """Return the error for an output that cannot be written."""
    return UserError(f"--output {path}: cannot be written: {error.strerror}")
