"""Folder of audio files with a text or subtitle file next to each.

The text of ``talk.wav`` is in ``talk.srt`` or ``talk.vtt`` (one utterance per cue),
``talk.txt``, ``talk.lab`` or ``talk.wav.txt``, in that order; a language code may stand
before the suffix (``talk.de.txt``). The translation into English is in ``talk.en.txt``,
``talk.en.srt`` or ``talk.en.vtt``; its cues have the times of the transcript's.
"""

from __future__ import annotations

import os
from pathlib import Path

from speechllm.audio.sources import AUDIO_SUFFIXES
from speechllm.corpora.own_data.items import (
    Item,
    ReadOptions,
    Source,
    read_text_file,
    set_of,
    speaker_of,
)
from speechllm.corpora.own_data.subtitle_text import (
    SUBTITLE_SUFFIXES,
    Cue,
    is_sound,
    read_subtitles,
)
from speechllm.utils.errors import UserError

_TEXT_SUFFIXES = (".txt", ".lab")
_SAME_TIME = 0.25  # seconds between the cues of two languages


def read_folder(root: Path, options: ReadOptions) -> Source:
    """Read the audio files below a folder, and the texts next to them.

    Audio files without a text are listed as dropped. A first-level folder named after a
    set (``train``, ``dev``, ``test``, …) gives the set.

    Raises:
        UserError: there is no audio file, or no text next to any.
    """
    source = Source("folder of audio files with texts")
    audio_files = 0
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names, stems = set(files), set()
        for file in sorted(files):
            path = Path(folder, file)
            if path.suffix.lower() not in AUDIO_SUFFIXES or file.startswith("."):
                continue
            audio_files += 1
            name = str(path.relative_to(root))
            if path.stem in stems:
                source.drop(name, "second audio file of this name")
                continue
            stems.add(path.stem)
            try:
                _read_audio(root, path, names, options, source)
            except UserError as error:
                source.drop(name, "damaged text", str(error))
    if not audio_files:
        raise UserError(
            f"{root}: neither audio files nor a manifest, Kaldi dir or CutSet; give "
            "the folder or file with your data"
        )
    if not source.items:
        first = source.dropped[0]
        raise UserError(
            f"{root}: no transcript next to any of {audio_files} audio files; write "
            f"the text of x.wav to x.txt, x.srt or x.vtt, or give a manifest ("
            f"{first.id}: {first.reason}{': ' if first.detail else ''}{first.detail})"
        )
    return source


def _read_audio(
    root: Path, path: Path, names: set[str], options: ReadOptions, source: Source
) -> None:
    """Add the utterances of one audio file to the source."""
    relative = path.relative_to(root)
    folder, stem = path.parent, path.stem
    language, target = options.language, options.target_language
    plain = [f"{stem}{end}" for end in _TEXT_SUFFIXES]
    plain += [f"{stem}.{language}{end}" for end in _TEXT_SUFFIXES]
    cues = [f"{stem}{end}" for end in SUBTITLE_SUFFIXES]
    cues += [f"{stem}.{language}{end}" for end in SUBTITLE_SUFFIXES]
    text = next((n for n in [*cues, *plain, f"{path.name}.txt"] if n in names), None)
    if text is None:
        source.drop(str(relative), "no text file", f"none of {plain[0]}, {cues[0]}")
        return
    common = {
        "audio": str(path.absolute()),
        "split": set_of(relative.parts[0]) if len(relative.parts) > 1 else "",
    }
    speaker = speaker_of(path, options.speaker_from)
    name = str(relative.with_suffix(""))
    if text in cues:
        found = read_subtitles(folder / text)
        translated = _translated_cues(folder, stem, names, target)
        for number, cue in enumerate(found, 1):
            place = f"{folder / text}:{cue.line}"
            label = f"{name}-{number:05d}"
            if not cue.text or is_sound(cue.text):
                source.drop(label, "subtitle without speech", cue.text)
            elif cue.end <= cue.start:
                times = f"{cue.start:g} to {cue.end:g} s"
                source.drop(label, "empty segment", f"{place}: {times}")
            else:
                item = Item(
                    name=label,
                    text=cue.text,
                    origin=place,
                    speaker=speaker or cue.speaker,
                    start=cue.start,
                    end=cue.end,
                    translation=_translation(cue, translated),
                    **common,
                )
                source.items.append(item)
        return
    translation = ""
    for end in _TEXT_SUFFIXES if target else ():
        if (other := f"{stem}.{target}{end}") in names:
            translation = read_text_file(folder / other)
            break
    item = Item(
        name=name,
        text=read_text_file(folder / text),
        origin=str(folder / text),
        speaker=speaker,
        translation=translation,
        **common,
    )
    source.items.append(item)


def _translated_cues(
    folder: Path, stem: str, names: set[str], target: str
) -> list[Cue]:
    for end in SUBTITLE_SUFFIXES if target else ():
        if (other := f"{stem}.{target}{end}") in names:
            return read_subtitles(folder / other)
    return []


def _translation(cue: Cue, translated: list[Cue]) -> str:
    """Return the text of the cue with the same times; empty without one."""
    for other in translated:
        apart = max(abs(other.start - cue.start), abs(other.end - cue.end))
        if apart <= _SAME_TIME:
            return other.text
    return ""
