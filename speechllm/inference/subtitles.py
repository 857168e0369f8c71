"""Subtitles: cues of at most two lines, as SubRip (.srt) and WebVTT (.vtt) files.

WebVTT follows the W3C specification (https://www.w3.org/TR/webvtt1/). SubRip has no
specification; the files have what common players accept: a number, a line of times with
a comma before the milliseconds, the lines of text, an empty line; UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from speechllm.decoding.result import Result, Segment
from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES

LINES = 2  # maximum per cue
LINE_LENGTH = 42  # maximum in characters; half of it for full-width characters
LONGEST_SECONDS = 7.0  # maximum duration of a cue
SHORTEST_SECONDS = 1.0  # minimum duration of a cue, unless the next one starts
PAUSE_SECONDS = 1.0  # minimum length of a pause in a segment that ends a cue


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
    of the segment is distributed in proportion to the number of characters.

    Args:
        result: of a recording, with ``passages``.
        language: two-letter code of the text's language.

    Returns:
        Cues in order, without overlap.
    """
    spaced = language not in LANGUAGES_WITHOUT_SPACES
    gap, width = (" ", LINE_LENGTH) if spaced else ("", LINE_LENGTH // 2)
    cues: list[Cue] = []
    for segment in result.passages or ():
        units = _units(segment, result, spaced, width)
        for group in _group_units(units, gap, width):
            start = max(group[0].start, cues[-1].end if cues else 0.0)
            end = max(group[-1].end, start + 0.001)
            cues.append(Cue(start, end, tuple(_wrap(group, gap, width))))
    return _lengthen(cues)


def format_srt(cues: Iterable[Cue]) -> str:
    """Return the content of a SubRip file.

    ``-->`` separates times, so in a text it is replaced by ``->``.
    """
    blocks = []
    for number, cue in enumerate(cues, 1):
        times = f"{_format_time(cue.start, ',')} --> {_format_time(cue.end, ',')}"
        lines = (line.replace("-->", "->") for line in cue.lines)
        blocks.append("\n".join([str(number), times, *lines]) + "\n")
    return "\n".join(blocks)


def format_vtt(cues: Iterable[Cue]) -> str:
    """Return the content of a WebVTT file, with ``&``, ``<`` and ``>`` escaped."""
    blocks = ["WEBVTT\n"]
    for cue in cues:
        times = f"{_format_time(cue.start, '.')} --> {_format_time(cue.end, '.')}"
        blocks.append("\n".join([times, *map(_escape, cue.lines)]) + "\n")
    return "\n".join(blocks)


def _units(
    segment: Segment, result: Result, spaced: bool, width: int
) -> Iterator[_Unit]:
    """Yield the units of a segment, split so that each fits in a line."""
    words = [
        word
        for word in result.words or ()
        if segment.start <= (word.start + word.end) / 2 <= segment.end
    ]
    if words:
        timed = [_Unit(word.text, word.start, word.end) for word in words]
    else:
        timed = _estimate_times(segment, spaced)
    for unit in timed:
        pieces = [unit.text[i : i + width] for i in range(0, len(unit.text), width)]
        step = (unit.end - unit.start) / max(len(pieces), 1)
        for i, piece in enumerate(pieces):
            yield _Unit(piece, unit.start + i * step, unit.start + (i + 1) * step)


def _estimate_times(segment: Segment, spaced: bool) -> list[_Unit]:
    """Return the words of a segment with durations in proportion to their length."""
    text = segment.text.split() if spaced else "".join(segment.text.split())
    characters = sum(len(word) + spaced for word in text)
    units, time = [], segment.start
    for word in text:
        seconds = (segment.end - segment.start) * (len(word) + spaced) / characters
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


def _escape(line: str) -> str:
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
