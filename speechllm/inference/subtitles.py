"""Subtitles: cues of at most two lines, as SubRip (.srt) and WebVTT (.vtt) files.

WebVTT is as the W3C has it (https://www.w3.org/TR/webvtt1/). SubRip has no such text;
what is written here is what its readers agree on: a number, a line of times with a
comma before the milliseconds, the lines, an empty line; UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from speechllm.decoding.result import Result, Segment
from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES

LINES = 2  # of a cue
LINE_LENGTH = 42  # letters of a line; half as many where letters are twice as wide
LONGEST_SECONDS = 7.0  # of a cue
SHORTEST_SECONDS = 1.0  # of a cue, where the next one leaves room
PAUSE_SECONDS = 1.0  # within a passage, that ends a cue


@dataclass(frozen=True)
class Cue:
    """Lines that are shown between two times, in seconds."""

    start: float
    end: float
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Unit:
    """A word, or a letter in languages without spaces, and when it is said."""

    text: str
    start: float
    end: float


def make_cues(result: Result, language: str) -> list[Cue]:
    """Cut the text of a recording into cues.

    A cue holds words of one passage. Its times are those of its words; where the
    result has none, the time of the passage is shared out by the number of letters.

    Args:
        result: of a recording, with ``passages``.
        language: two-letter code of the text's language.

    Returns:
        Cues in order, none beginning before the one before it ends.
    """
    spaced = language not in LANGUAGES_WITHOUT_SPACES
    gap, width = (" ", LINE_LENGTH) if spaced else ("", LINE_LENGTH // 2)
    cues: list[Cue] = []
    for passage in result.passages or ():
        for group in _groups(_units(passage, result, spaced, width), gap, width):
            start = max(group[0].start, cues[-1].end if cues else 0.0)
            end = max(group[-1].end, start + 0.001)
            cues.append(Cue(start, end, tuple(_wrap(group, gap, width))))
    return _lengthen(cues)


def format_srt(cues: Iterable[Cue]) -> str:
    """Cues as a SubRip file; ``-->`` in a text, which divides times, loses a dash."""
    blocks = []
    for number, cue in enumerate(cues, 1):
        times = f"{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}"
        lines = (line.replace("-->", "->") for line in cue.lines)
        blocks.append("\n".join([str(number), times, *lines]) + "\n")
    return "\n".join(blocks)


def format_vtt(cues: Iterable[Cue]) -> str:
    """Cues as a WebVTT file; ``&``, ``<`` and ``>`` are escaped."""
    blocks = ["WEBVTT\n"]
    for cue in cues:
        times = f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}"
        blocks.append("\n".join([times, *map(_escape, cue.lines)]) + "\n")
    return "\n".join(blocks)


def _units(
    passage: Segment, result: Result, spaced: bool, width: int
) -> Iterator[_Unit]:
    """What a cue may be made of, none longer than a line."""
    words = [
        word
        for word in result.words or ()
        if passage.start <= (word.start + word.end) / 2 <= passage.end
    ]
    if words:
        timed = [_Unit(word.text, word.start, word.end) for word in words]
    else:
        timed = _shared_out(passage, spaced)
    for unit in timed:
        pieces = [unit.text[i : i + width] for i in range(0, len(unit.text), width)]
        step = (unit.end - unit.start) / max(len(pieces), 1)
        for i, piece in enumerate(pieces):
            yield _Unit(piece, unit.start + i * step, unit.start + (i + 1) * step)


def _shared_out(passage: Segment, spaced: bool) -> list[_Unit]:
    """The words of a passage, each with time in proportion to its letters."""
    text = passage.text.split() if spaced else "".join(passage.text.split())
    letters = sum(len(word) + spaced for word in text)
    units, time = [], passage.start
    for word in text:
        seconds = (passage.end - passage.start) * (len(word) + spaced) / letters
        units.append(_Unit(word, time, time + seconds))
        time += seconds
    return units


def _groups(units: Iterable[_Unit], gap: str, width: int) -> Iterator[list[_Unit]]:
    """Units that fit in a cue together."""
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
    """Lines of at most ``width`` letters."""
    lines: list[str] = []
    for unit in units:
        if lines and len(lines[-1]) + len(gap) + len(unit.text) <= width:
            lines[-1] += gap + unit.text
        else:
            lines.append(unit.text)
    return lines


def _lengthen(cues: Sequence[Cue]) -> list[Cue]:
    """Show short cues longer, but not into the next one."""
    longer = []
    for number, cue in enumerate(cues):
        end = max(cue.end, cue.start + SHORTEST_SECONDS)
        if number + 1 < len(cues):
            end = max(min(end, cues[number + 1].start), cue.end)
        longer.append(Cue(cue.start, end, cue.lines))
    return longer


def _clock(seconds: float, mark: str) -> str:
    """Hours, minutes, seconds and, behind ``mark``, milliseconds."""
    rest, milliseconds = divmod(round(seconds * 1000), 1000)
    rest, second = divmod(rest, 60)
    hour, minute = divmod(rest, 60)
    return f"{hour:02d}:{minute:02d}:{second:02d}{mark}{milliseconds:03d}"


def _escape(line: str) -> str:
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
