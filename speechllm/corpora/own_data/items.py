"""Utterances of a user's own data, before they are split and checked."""

from __future__ import annotations

import codecs
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from speechllm.data.kaldi_table import Dropped
from speechllm.utils.errors import UserError

STAGE = "prepare_data"
SETS = ("train", "dev", "test")
_SET_OF = dict.fromkeys(("train", "training"), "train")
_SET_OF |= dict.fromkeys(("dev", "valid", "validation", "val", "devel"), "dev")
_SET_OF |= dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")
_FILE_WORDS = {"manifest", "metadata", "cuts", "data"}
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True, slots=True)
class Item:
    """One utterance of the input.

    Attributes:
        name: in the input, such as a relative path or an id; not necessarily unique.
        audio: absolute path, Kaldi archive position or, of a Kaldi dir, a command.
        text: transcript as written.
        origin: file, and line where there is one, for messages.
        speaker: empty if unknown.
        split: ``train``, ``dev`` or ``test``; empty if the input does not say.
        start, end: seconds in the recording; None is its start or its end.
        translation: empty if there is none.
        language: code of the spoken language; empty if the input does not say.
        seconds: length of the recording if the input says it.
        ctc_error: character error rate of the CTC transcript; None without a model.
    """

    name: str
    audio: str
    text: str
    origin: str
    speaker: str = ""
    split: str = ""
    start: float | None = None
    end: float | None = None
    translation: str = ""
    language: str = ""
    seconds: float | None = None
    ctc_error: float | None = None


@dataclass(frozen=True)
class ReadOptions:
    """Options of reading.

    Attributes:
        language: code of the spoken language.
        target_language: code of the translations; empty without them.
        columns: role (``audio``, ``text``, …) → column of a manifest, given by the
            user.
        audio_dir: folder that paths in a manifest are relative to.
        speaker_from: ``folder`` or ``name``: the speaker is the folder of the audio
            file, or the part of its name before the first ``-`` or ``_``.
    """

    language: str = "en"
    target_language: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    audio_dir: Path | None = None
    speaker_from: str = ""


@dataclass
class Source:
    """Content of the input.

    Attributes:
        kind: format of the input, for the report.
        items: utterances.
        dropped: entries that are not usable.
        notes: lines for the report, such as the columns that are used.
    """

    kind: str
    items: list[Item] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def drop(self, name: str, reason: str, detail: str = "") -> None:
        """Record an entry that is left out."""
        self.dropped.append(Dropped(name, STAGE, reason, detail))


def set_of(name: str) -> str:
    """Return ``train``, ``dev`` or ``test`` for its usual names, else an empty text."""
    return _SET_OF.get(name.strip().lower(), "")


def set_of_file(path: Path) -> str:
    """Return the set that a file is named after: ``train.tsv``, ``cuts_dev.jsonl.gz``.

    A file such as ``metadata.csv`` belongs to the set that its folder is named after.
    """
    stem = path.name.lower().partition(".")[0]
    words = [word for word in re.split("[-_]", stem) if word not in _FILE_WORDS]
    if not words:
        return set_of(path.parent.name)
    return set_of(words[0]) if len(words) == 1 else ""


def read_text_file(path: Path) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 with a byte-order mark.

    A leading U+FEFF stays, so that it can be reported.

    Raises:
        UserError: the file is in another encoding.
    """
    raw = path.read_bytes()
    encoding = next((e for mark, e in _BOMS.items() if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 (byte 0x{raw[error.start]:02x} at {error.start}); "
            "convert the file with iconv"
        ) from None
    return "\ufeff" + text if encoding == "utf-8-sig" else text


def speaker_of(path: Path, speaker_from: str) -> str:
    """Return the speaker by the folder or the name of an audio file, else empty."""
    if speaker_from == "folder":
        return "" if set_of(path.parent.name) else path.parent.name
    if speaker_from == "name":
        speaker, *rest = re.split("[-_]", path.stem, maxsplit=1)
        return speaker if rest else ""
    return ""


def file_version(audio: str) -> list[int] | None:
    """Return size and modification time (ns) of a file; None for other audio."""
    try:
        status = os.stat(audio)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def find_audio(value: str, folders: list[Path]) -> str | None:
    """Return the absolute path of an audio file that an input names.

    Args:
        value: path, absolute or relative to one of the folders, with or without the
            suffix of an audio file.
        folders: in the order in which they are tried.
    """
    value = value.strip().removeprefix("file://")
    for folder in folders:
        path = os.path.join(folder, value)
        for suffix in ("", ".wav", ".flac", ".mp3"):
            if os.path.isfile(path + suffix):
                return os.path.abspath(path + suffix)
    return None
