"""Subtitles: cues of at most two lines, as SubRip (.srt) and WebVTT (.vtt) files.

They are written here and not with pysubs2, whose texts are ASS: it would drop braces
and tags of the transcript, which are shown instead. WebVTT follows the W3C
specification (https://www.w3.org/TR/webvtt1/). SubRip has no specification; the files
have what common players accept: a number, a line of times with
a comma before the milliseconds, the lines of text, an empty line; UTF-8.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from speechllm.decoding.result import Result, Segment, Word
from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES

LINES = 2  # maximum per cue
LINE_LENGTH = 42  # maximum in characters; half of it for full-width characters
LONGEST_SECONDS = 7.0  # maximum duration of a cue
SHORTEST_SECONDS = 1.0  # minimum duration of a cue, unless the next one starts
PAUSE_SECONDS = 1.0  # minimum length of a pause in a segment that ends a cue
#: Characters that do not begin a line, and that do not end one, as JIS X 4051 has them.
NO_LINE_START = frozenset(
    "、。，．・：；？！゛゜ヽヾゝゞ々ー’”）〕］｝〉》」』】…‥"
    "ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶ!?.,:;)]}»％"
)
NO_LINE_END = frozenset("‘“（〔［｛〈《「『【([{«￥＄")
_ARROW = re.compile("-{2,}>")
_TAG = re.compile("<([^<>]*)>")
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Cue:
    """Lines of text shown from ``start`` to ``end``, in seconds."""

    start: float
    end: float
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Unit:
    """A word (a character in languages without spaces) with its times in seconds."""

    text: str
    start: float
    end: float


def make_cues(result: Result, language: str) -> list[Cue]:
    """Split the text of a recording into cues.

    A cue has words of one segment and their times. Without word times, the duration
    of the segment is distributed in proportion to the number of characters. So it is
    for the translation of ``asr_st``, whose words are those of the transcript: there
    it is the duration from the first to the last word.

    Args:
        result: of a recording, with ``passages``.
        language: two-letter code of the text's language.

    Returns:
        Cues in order, without overlap.
    """
    spaced = language not in LANGUAGES_WITHOUT_SPACES
    gap, width = (" ", LINE_LENGTH) if spaced else ("", LINE_LENGTH // 2)
    cues: list[Cue] = []
    passages = result.passages or []
    for segment, words in zip(
        passages, words_of_segments(passages, result.words or [])
    ):
        units = _units(segment, words, result.transcript is None, spaced, width)
        if not spaced:
            units = _bind_punctuation(units, width)
        for group in _group_units(units, gap, width):
            start = max(group[0].start, cues[-1].end if cues else 0.0)
            end = max(group[-1].end, start + 0.001)
            cues.append(Cue(start, end, tuple(_wrap(group, gap, width))))
    return _lengthen(cues)


def format_srt(cues: Iterable[Cue]) -> str:
    """Return the content of a SubRip file.

    SubRip cannot escape what players take for markup: ``-->`` becomes ``->``, the
    brackets of ``<tag>`` become ``‹tag›``, and braces become parentheses.
    """
    blocks = []
    for number, cue in enumerate(cues, 1):
        times = f"{_format_time(cue.start, ',')} --> {_format_time(cue.end, ',')}"
        text = _ARROW.sub("->", "\n".join(map(_printable, cue.lines)))
        text = _TAG.sub(r"‹\1›", text).replace("{", "(").replace("}", ")")
        blocks.append(f"{number}\n{times}\n{text}\n")
    return "\n".join(blocks)


def format_vtt(cues: Iterable[Cue]) -> str:
    """Return the content of a WebVTT file, with ``&``, ``<`` and ``>`` escaped."""
    blocks = ["WEBVTT\n"]
    for cue in cues:
        times = f"{_format_time(cue.start, '.')} --> {_format_time(cue.end, '.')}"
        blocks.append("\n".join([times, *map(_escape, cue.lines)]) + "\n")
    return "\n".join(blocks)


def words_of_segments(
    passages: Sequence[Segment], words: Sequence[Word]
) -> list[list[Word]]:
    """Return the words of each segment, by the middle of the word."""
    found: list[list[Word]] = [[] for _ in passages]
    starts = [segment.start for segment in passages]
    for word in words if passages else ():
        middle = (word.start + word.end) / 2
        found[max(bisect_right(starts, middle) - 1, 0)].append(word)
    return found


def _units(
    segment: Segment, words: Sequence[Word], of_text: bool, spaced: bool, width: int
) -> Iterator[_Unit]:
    """Yield the units of a segment, split so that each fits in a line.

    Args:
        words: spoken in the segment.
        of_text: they are the words of its text, not of a transcript.
    """
    if words and of_text:
        timed = [_Unit(word.text, word.start, word.end) for word in words]
    else:
        start = words[0].start if words else segment.start
        end = words[-1].end if words else segment.end
        timed = _estimate_times(segment.text, start, end, spaced)
    for unit in timed:
        pieces = [unit.text[i : i + width] for i in range(0, len(unit.text), width)]
        step = (unit.end - unit.start) / max(len(pieces), 1)
        for i, piece in enumerate(pieces):
            yield _Unit(piece, unit.start + i * step, unit.start + (i + 1) * step)


def _bind_punctuation(units: Iterable[_Unit], width: int) -> Iterator[_Unit]:
    """Join units between which no line may break, as long as they fit in a line."""
    bound: _Unit | None = None
    for unit in units:
        if (
            bound is not None
            and (unit.text[0] in NO_LINE_START or bound.text[-1] in NO_LINE_END)
            and len(bound.text) + len(unit.text) <= width
        ):
            bound = _Unit(bound.text + unit.text, bound.start, unit.end)
            continue
        if bound is not None:
            yield bound
        bound = unit
    if bound is not None:
        yield bound


def _estimate_times(text: str, start: float, end: float, spaced: bool) -> list[_Unit]:
    """Return the words of a text with durations in proportion to their length."""
    words = text.split() if spaced else "".join(text.split())
    characters = sum(len(word) + spaced for word in words)
    units, time = [], start
    for word in words:
        seconds = (end - start) * (len(word) + spaced) / characters
        units.append(_Unit(word, time, time + seconds))
        time += seconds
    return units


def _group_units(units: Iterable[_Unit], gap: str, width: int) -> Iterator[list[_Unit]]:
    """Yield the units of each cue."""
    group: list[_Unit] = []
    for unit in units:
        if group and (
            len(_wrap([*group, unit], gap, width)) > LINES
            or unit.end - group[0].start > LONGEST_SECONDS
            or unit.start - group[-1].end > PAUSE_SECONDS
        ):
            yield group
            group = []
        group.append(unit)
    if group:
        yield group


def _wrap(units: Sequence[_Unit], gap: str, width: int) -> list[str]:
    """Return lines of at most ``width`` characters."""
    lines: list[str] = []
    for unit in units:
        if lines and len(lines[-1]) + len(gap) + len(unit.text) <= width:
            lines[-1] += gap + unit.text
        else:
            lines.append(unit.text)
    return lines


def _lengthen(cues: Sequence[Cue]) -> list[Cue]:
    """Extend short cues, at most to the start of the next one."""
    longer = []
    for number, cue in enumerate(cues):
        end = max(cue.end, cue.start + SHORTEST_SECONDS)
        if number + 1 < len(cues):
            end = max(min(end, cues[number + 1].start), cue.end)
        longer.append(Cue(cue.start, end, cue.lines))
    return longer


def _format_time(seconds: float, mark: str) -> str:
    """Return hours:minutes:seconds, ``mark`` and milliseconds."""
    rest, milliseconds = divmod(round(seconds * 1000), 1000)
    rest, second = divmod(rest, 60)
    hour, minute = divmod(rest, 60)
    return f"{hour:02d}:{minute:02d}:{second:02d}{mark}{milliseconds:03d}"


def _printable(line: str) -> str:
    return _CONTROLS.sub("", line)


def _escape(line: str) -> str:
    line = _printable(line)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
