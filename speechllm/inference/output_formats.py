"""Output formats of ``speechllm transcribe``.

TextGrid is Praat's long text format, written here since it is ten lines; the tests read
it with praatio.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from speechllm.utils.names import one_line, utf8_name

if TYPE_CHECKING:
    from speechllm.decoding.result import Result, Word
    from speechllm.inference.long_form import Transcription

#: Formats of several recordings in one file, one line for each.
LINE_FORMATS = ("table", "json", "text")
#: Formats with one file for each recording; their names are the suffixes.
FILE_FORMATS = ("txt", "srt", "vtt", "json", "tsv", "ctm", "TextGrid")
ALL = "all"  # every format of FILE_FORMATS
FORMATS = (*LINE_FORMATS, *(f for f in FILE_FORMATS if f not in LINE_FORMATS), ALL)
#: Formats that show word times wherever a model gives them.
WORD_FORMATS = ("ctm", "TextGrid", ALL)

#: (start, end, text) in seconds.
Interval = tuple[float, float, str]


def format_transcription(
    name: str,
    transcription: Transcription,
    form: str,
    language: str,
    indent: int | None = None,
) -> str | None:
    """Return a transcription in an output format, with line ends.

    Args:
        name: of the recording. Bytes that are not UTF-8 are written as ``\\x83``; in a
            table so are control characters, such as a tab.
        form: ``table``: a line with name, tab and text; ``text``: a line with the
            text; ``json``: see :func:`json_entry`; ``txt``: a line for each segment;
            ``tsv``: start and end of the segments in milliseconds and their text, as
            Whisper's; ``ctm``: a line for each word, as NIST's; ``srt``, ``vtt``,
            ``TextGrid``: the content of such a file.
        language: two-letter code of the text's language.
        indent: of ``json``; None: one line.

    Returns:
        The formatted text. Without a result: ``table`` gives an empty string,
        ``text`` an empty line, all others but ``json`` None. ``ctm`` is None without
        word times, as of translations.
    """
    result = transcription.result
    if form == "json":
        entry = json_entry(name, transcription)
        return json.dumps(entry, ensure_ascii=False, indent=indent) + "\n"
    if form == "text":
        return ("" if result is None else " ".join(result.text.split())) + "\n"
    if form == "table":
        if result is None:
            return ""
        return f"{one_line(name)}\t{' '.join(result.text.split())}\n"
    if result is None:
        return None
    if form in ("srt", "vtt"):
        from speechllm.inference.subtitles import format_srt, format_vtt, make_cues

        cues = make_cues(result, language)
        return format_srt(cues) if form == "srt" else format_vtt(cues)
    segments = result.passages or []
    if form == "txt":
        return "".join(f"{' '.join(s.text.split())}\n" for s in segments)
    if form == "tsv":
        lines = ["start\tend\ttext\n"]
        for s in segments:
            text = " ".join(s.text.split())
            lines.append(f"{round(1000 * s.start)}\t{round(1000 * s.end)}\t{text}\n")
        return "".join(lines)
    if form == "ctm":
        return None if result.words is None else format_ctm(name, result.words)
    return format_textgrid(result, transcription.seconds)


def json_entry(name: str, transcription: Transcription) -> dict[str, Any]:
    """Return the JSON object of a recording.

    It has Whisper's names: ``text``, ``language``, ``segments`` with ``id``, ``start``,
    ``end`` and ``text``, and where word times were requested ``words`` with ``word``,
    ``start``, ``end`` and ``probability`` (of ``asr_st`` those of the transcript). In
    addition ``name``, ``seconds``, ``language_probability`` of a detected language, the
    fields of ``Result.entry``, and ``error`` if there is one.
    """
    seconds = round(transcription.seconds, 3)
    entry: dict[str, Any] = {"name": utf8_name(name), "seconds": seconds}
    if transcription.language is not None:
        entry["language"] = transcription.language
    if transcription.language_probability is not None:
        entry["language_probability"] = round(transcription.language_probability, 4)
    result = transcription.result
    if result is not None:
        found = result.entry()
        entry["text"] = found.pop("text")
        found.pop("words", None)
        if found.pop("passages", None) is not None:
            entry["segments"] = json_segments(result)
        entry |= found
    if transcription.error is not None:
        entry["error"] = utf8_name(transcription.error)
    return entry


def json_segments(result: Result) -> list[dict[str, Any]]:
    """Return the segments of a recording, with the words that are spoken in each."""
    from speechllm.inference.subtitles import words_of_segments

    segments = result.passages or []
    grouped = words_of_segments(segments, result.words or [])
    entries = []
    for number, (segment, words) in enumerate(zip(segments, grouped)):
        entry: dict[str, Any] = {
            "id": number,
            "start": round(segment.start, 3),
            "end": round(segment.end, 3),
            "text": " ".join(segment.text.split()),
        }
        if result.words is not None:
            entry["words"] = [
                {
                    "word": word.text,
                    "start": round(word.start, 3),
                    "end": round(word.end, 3),
                    "probability": round(word.confidence, 4),
                }
                for word in words
            ]
        entries.append(entry)
    return entries


def format_ctm(name: str, words: Iterable[Word]) -> str:
    """Return words as NIST's CTM: name, channel, start, duration, word, confidence."""
    recording = "_".join(one_line(name).split())
    return "".join(
        f"{recording} 1 {word.start:.3f} {word.end - word.start:.3f} "
        f"{'_'.join(word.text.split())} {word.confidence:.4f}\n"
        for word in words
    )


def format_textgrid(result: Result, seconds: float) -> str:
    """Return a TextGrid of Praat with the tiers ``segments`` and ``words``."""
    tiers = {"segments": [(s.start, s.end, s.text) for s in result.passages or []]}
    if result.words is not None:
        tiers["words"] = [(w.start, w.end, w.text) for w in result.words]
    end = max([seconds, 0.001, *(end for rows in tiers.values() for _, end, _ in rows)])
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', ""]
    lines += [
        "xmin = 0",
        f"xmax = {end:.6f}",
        "tiers? <exists>",
        f"size = {len(tiers)}",
    ]
    lines.append("item []:")
    for number, (name, rows) in enumerate(tiers.items(), 1):
        intervals = fill_gaps(rows, end)
        lines += [f"    item [{number}]:", '        class = "IntervalTier"']
        lines += [f'        name = "{name}"', "        xmin = 0"]
        lines += [
            f"        xmax = {end:.6f}",
            f"        intervals: size = {len(intervals)}",
        ]
        for index, (first, last, text) in enumerate(intervals, 1):
            quoted = one_line(" ".join(text.split())).replace('"', '""')
            lines += [
                f"        intervals [{index}]:",
                f"            xmin = {first:.6f}",
            ]
            lines += [
                f"            xmax = {last:.6f}",
                f'            text = "{quoted}"',
            ]
    return "\n".join(lines) + "\n"


def fill_gaps(rows: Sequence[Interval], end: float) -> list[Interval]:
    """Return intervals that cover a recording once, those in between with no text.

    Intervals that overlap begin later; what has no duration then has a microsecond.
    """
    found: list[Interval] = []
    time = 0.0
    for start, last, text in rows:
        start, last = (round(min(t, end), 6) for t in (start, last))
        if start > time:
            found.append((time, start, ""))
            time = start
        last = max(last, round(time + 1e-6, 6))
        found.append((time, last, text))
        time = last
    if time < round(end, 6) or not found:
        found.append((time, round(end, 6), ""))
    return found
