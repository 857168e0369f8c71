"""Utterances of a Kaldi data dir or of a Lhotse CutSet."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from speechllm.audio.sources import is_archive
from speechllm.corpora.own_data.items import (
    Item,
    ReadOptions,
    Source,
    find_audio,
    set_of,
    set_of_file,
)
from speechllm.data.kaldi_table import iterate_table, parse_segment, read_table
from speechllm.utils.errors import UserError


def read_kaldi(folder: Path, options: ReadOptions) -> Source:
    """Read a Kaldi data dir: ``wav.scp`` and ``text``, the other tables if there.

    Relative paths are relative to the data dir or one of the three folders above it.
    Where a speaker of ``utt2spk`` is the utterance itself, it is unknown.

    Raises:
        UserError: a table is missing or damaged.
    """
    source = Source("Kaldi data dir")
    bases = [folder, *folder.absolute().parents[:3]]
    recordings = {}
    for recording, value in iterate_table(folder / "wav.scp"):
        if value.endswith("|") or is_archive(value):
            recordings[recording] = value
        elif audio := find_audio(value, bases):
            recordings[recording] = audio

    def optional(name: str) -> dict[str, str]:
        path = folder / name
        return read_table(path) if path.is_file() else {}

    speakers, languages = optional("utt2spk"), optional("utt2lang")
    segments, durations = optional("segments"), optional("utt2dur")
    target = options.target_language
    translations = optional(f"text.{target}") if target else {}
    for key, text in iterate_table(folder / "text"):
        recording, start, end = key, None, None
        if segments:
            if key not in segments:
                source.drop(key, "no segment", str(folder / "segments"))
                continue
            try:
                recording, start, end = parse_segment(segments[key])
            except ValueError:
                source.drop(key, "bad row", f"{folder / 'segments'}: {segments[key]}")
                continue
            if end == -1:  # Kaldi's end of the recording
                end = None
        if recording not in recordings:
            source.drop(key, "no audio file", f"{folder / 'wav.scp'}: {recording}")
            continue
        duration = None if segments else durations.get(key)
        try:
            seconds = None if duration is None else float(duration)
        except ValueError:
            seconds = None
        speaker = speakers.get(key, "")
        item = Item(
            name=key,
            audio=recordings[recording],
            text=text,
            origin=f"{folder / 'text'}: {key}",
            speaker="" if speaker == key else speaker,
            split=set_of(folder.name),
            start=start,
            end=end,
            translation=translations.get(key, ""),
            language=languages.get(key, ""),
            seconds=seconds,
        )
        source.items.append(item)
    return source


def is_cut_set(path: Path) -> bool:
    """Return True if the first line of a file is a cut of Lhotse."""
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig") as stream:
            value = json.loads(stream.readline())
    except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError):
        return False
    return isinstance(value, dict) and str(value.get("type", "")).endswith("Cut")


def read_cuts(path: Path, options: ReadOptions) -> Source:
    """Read the supervisions of a Lhotse CutSet; each is an utterance.

    A translation is in the supervision's custom field ``translation``,
    ``translation_<lang>`` or ``text_<lang>``. Left out are copies at another speed,
    whose times are not those of the file (stage 2 makes such copies), and single
    channels of a file with several.
    """
    from lhotse import CutSet, MonoCut

    source = Source("Lhotse CutSet")
    bases = [path.parent, *path.absolute().parents[1:3], Path.cwd()]
    for cut in CutSet.from_file(path.absolute()):  # it runs names like "pipe:…"
        if not isinstance(cut, MonoCut):
            source.drop(cut.id, "cut of another kind", type(cut).__name__)
            continue
        transforms = cut.recording.transforms if cut.recording else None
        if any(_changes_times(transform) for transform in transforms or ()):
            source.drop(cut.id, "copy at another speed", f"{path}: {cut.id}")
            continue
        audio, channels = _audio_of(cut, bases)
        if audio is None:
            source.drop(cut.id, "no audio file", f"{path}: {cut.id}")
            continue
        if channels > 1:
            source.drop(
                cut.id,
                "one channel of several",
                f"{audio}: channel {cut.channel} of {channels}; write each as a file "
                "of its own with Lhotse's CutSet.save_audios",
            )
            continue
        for supervision in cut.supervisions:
            start = max(cut.start + supervision.start, 0.0)
            end = min(start + supervision.duration, cut.recording.duration)
            whole = start == 0 and end == cut.recording.duration
            if end <= start:
                source.drop(supervision.id, "empty segment", f"{path}: {cut.id}")
                continue
            item = Item(
                name=supervision.id,
                audio=audio,
                text=supervision.text or "",
                origin=f"{path}: {cut.id}",
                speaker=supervision.speaker or "",
                split=set_of_file(path),
                start=None if whole else start,
                end=None if whole else end,
                translation=_translation(supervision.custom, options.target_language),
                language=_language(supervision.language),
                seconds=cut.recording.duration,
            )
            source.items.append(item)
    if not source.items and not source.dropped:
        raise UserError(f"{path}: no supervision in this CutSet; it needs transcripts")
    return source


def _changes_times(transform: Any) -> bool:
    """Return True for a change of speed, an object of Lhotse or its JSON."""
    if isinstance(transform, dict):
        return transform.get("name") in ("Speed", "Tempo")
    return type(transform).__name__ in ("Speed", "Tempo")


def _audio_of(cut: Any, bases: list[Path]) -> tuple[str | None, int]:
    """Return the local file of a cut's recording, and its number of channels."""
    for part in cut.recording.sources if cut.recording else ():
        if part.type == "file" and cut.channel in part.channels:
            return find_audio(str(part.source), bases), len(part.channels)
    return None, 0


def _translation(custom: dict[str, Any] | None, target: str) -> str:
    names = (f"translation_{target}", f"text_{target}", "translation")
    found = (custom[name] for name in names if custom and custom.get(name))
    return str(next(found, "")) if target else ""


def _language(value: str | None) -> str:
    """Return a language code; a name such as ``German`` is not one."""
    code = (value or "").lower().split("-")[0]
    return code if 2 <= len(code) <= 3 else ""
