"""Manifests: CSV, TSV, JSON and JSONL lists of audio files with their transcripts.

The columns are found by the names that Common Voice, NeMo, the ``audiofolder`` of
Hugging Face's datasets and the guides to fine-tuning Whisper use.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechllm.corpora._common_voice_tsv import unquote
from speechllm.corpora.own_data.items import (
    Item,
    ReadOptions,
    Source,
    find_audio,
    read_text_file,
    set_of,
    set_of_file,
    speaker_of,
)
from speechllm.utils.errors import UserError

MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
#: Role → usual names of its column, in the order of preference.
COLUMNS = {
    "audio": (
        "path audio_filepath audio file_name audio_path file filename filepath "
        "audio_file wav wav_filename wav_path clip recording"
    ).split(),
    "text": "sentence text transcription transcript transcripts reference".split(),
    "speaker": "client_id speaker_id speaker spk_id spk reader_id user_id".split(),
    "split": "split subset partition set".split(),
    "duration": "duration duration_s seconds".split(),
    "start": "offset start start_time begin".split(),
    "end": "end end_time stop".split(),
    "language": "lang language locale source_lang src_lang".split(),
    "translation": "translation translated_text tgt_text target_text".split(),
}
ROLES = tuple(COLUMNS)
_FOLDERS = ("", "clips", "wavs", "wav", "audio")  # next to a manifest
_DELIMITERS = ",;\t|"
_CODE = re.compile("[A-Za-z]{2,3}([-_].*)?")


def read_manifest(path: Path, options: ReadOptions) -> Source:
    """Read a manifest; rows that cannot be used are listed as dropped.

    Raises:
        UserError: the file is not UTF-8, empty or not a table, or its columns of audio
            and text cannot be found.
    """
    split = set_of_file(path)
    source = Source(f"manifest ({path.suffix[1:].lower()})")
    is_table = path.suffix.lower() in (".csv", ".tsv")
    rows = list(_table_rows(path, source) if is_table else _json_rows(path, source))
    if not rows:
        first = f" ({source.dropped[0].detail})" if source.dropped else ""
        raise UserError(f"{path}: the manifest has no rows that can be read{first}")
    columns = find_columns(
        path, list(dict.fromkeys(n for _, r in rows for n in r)), options
    )
    used = ", ".join(f"{role} = {name}" for role, name in columns.items())
    source.notes.append(f"{path.name}: {used}")
    folders = [path.parent / name for name in _FOLDERS]
    if options.audio_dir is not None:
        folders.insert(0, options.audio_dir)
    elif path.parent.parent != path.parent:
        folders.append(path.parent.parent)
    for line, row in rows:
        fields = {role: _text(row.get(name)) for role, name in columns.items()}
        _add_item(fields, f"{path}:{line}", split, folders, options, source)
    return source


def find_columns(path: Path, names: list[str], options: ReadOptions) -> dict[str, str]:
    """Return the column of each role that a manifest has.

    Raises:
        UserError: a column that the user gave does not exist, or there is none for
            audio or text; lists the columns.
    """
    listed = ", ".join(names)
    usual = {name.strip().lower(): name for name in reversed(names)}
    columns = {}
    for role, candidates in COLUMNS.items():
        if role == "translation" and options.target_language:
            target = options.target_language
            special = [f"{n}_{target}" for n in ("translation", "text", "sentence")]
            candidates = [*special, target, *candidates]
        given = options.columns.get(role)
        if given is not None:
            if given not in names:
                raise UserError(
                    f"{path}: no column '{given}' (--{role}_column); there are: "
                    f"{listed}"
                )
            columns[role] = given
        elif found := next((usual[c] for c in candidates if c in usual), None):
            columns[role] = found
    for role in ("audio", "text"):
        if role not in columns:
            raise UserError(
                f"{path}: no column of the {role} was recognised; give its name with "
                f"--{role}_column; there are: {listed}"
            )
    if not options.target_language:
        columns.pop("translation", None)
    return columns


def _add_item(
    fields: dict[str, str],
    origin: str,
    split: str,
    folders: list[Path],
    options: ReadOptions,
    source: Source,
) -> None:
    """Add the utterance of one row to the source, or list the row as dropped."""
    name = fields["audio"]
    audio = find_audio(name, folders) if name else None
    if audio is None:
        source.drop(name or origin, "no audio file", origin)
        return
    try:
        duration = _number(fields.get("duration", ""))
        start = _number(fields.get("start", ""))
        end = _number(fields.get("end", ""))
    except ValueError as error:
        source.drop(name, "bad row", f"{origin}: {error}")
        return
    if start is not None and end is None and duration is not None:
        end = start + duration
    if end is not None and end <= (start or 0.0):
        source.drop(name, "empty segment", f"{origin}: {start or 0:g} to {end:g} s")
        return
    language = fields.get("language", "")
    is_code = _CODE.fullmatch(language)
    is_segment = start is not None or end is not None
    stem = name.rpartition(".")[0] or name
    item = Item(
        name=f"{stem}-{round((start or 0) * 100):07d}" if is_segment else stem,
        audio=audio,
        text=fields["text"],
        origin=origin,
        speaker=fields.get("speaker", "")
        or speaker_of(Path(audio), options.speaker_from),
        split=set_of(fields.get("split", "")) or split,
        start=start,
        end=end,
        translation=fields.get("translation", ""),
        language=re.split("[-_]", language.lower())[0] if is_code else "",
        seconds=None if is_segment else duration,
    )
    source.items.append(item)


def _table_rows(path: Path, source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, row) of a CSV or TSV file."""
    text = read_text_file(path)
    if text.startswith("\ufeff"):
        source.notes.append(f"{path.name}: begins with a byte-order mark (removed)")
        text = text[1:]
    head = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=head.count)
    # A quotation mark in a tab-separated text is usually not closed.
    plain = delimiter == "\t"
    quoting = csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
    text = text.replace("\r\n", "\n")
    lines = text.replace("\r", " " if "\n" in text else "\n").split("\n")
    reader = csv.reader((f"{s}\n" for s in lines), delimiter=delimiter, quoting=quoting)
    header: list[str] = []
    first = 1
    try:
        for fields in reader:
            line, first = first, reader.line_num + 1
            if not any(field.strip() for field in fields):
                continue
            if plain:
                fields = [unquote(field) for field in fields]
            if not header:
                header = [name.strip() for name in fields]
                repeated = {name for name in header if header.count(name) > 1}
                if repeated - {""}:
                    raise UserError(
                        f"{path}:{line}: the column '{min(repeated - {''})}' is listed "
                        "twice"
                    )
            elif len(fields) != len(header):
                count = f"{len(fields)} fields where the header has {len(header)}"
                source.drop(f"{path.name}:{line}", "bad row", count)
            else:
                yield line, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise UserError(
            f"{path}:{first}: not a row ({error}); a quotation mark is probably not "
            "closed"
        ) from None


def _json_rows(path: Path, source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, row) of a JSON array or of a file with one object per line."""
    text = read_text_file(path)
    if text.startswith("\ufeff"):
        source.notes.append(f"{path.name}: begins with a byte-order mark (removed)")
        text = text[1:]
    if text.lstrip().startswith("["):
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
        rows = list(enumerate(values, 1))
    else:
        rows = []
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                rows.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                source.drop(f"{path.name}:{number}", "bad row", f"not JSON: {error}")
    for number, row in rows:
        if isinstance(row, dict):
            yield number, row
        else:
            source.drop(f"{path.name}:{number}", "bad row", "not a JSON object")


def _text(value: Any) -> str:
    """Return a field as text; of a dict its path."""
    if isinstance(value, dict):
        value = value.get("path")
    return "" if value is None else str(value).strip(" \t\r\n")


def _number(field: str) -> float | None:
    """Return a field in seconds; None if it is empty.

    Raises:
        ValueError: it is not a number from 0 on.
    """
    if not field:
        return None
    try:
        value = float(field)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"{field!r} is not a time in seconds")
    return value
