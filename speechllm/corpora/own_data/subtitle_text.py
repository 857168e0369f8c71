"""Reader of subtitles: SubRip (.srt) and WebVTT (.vtt).

A cue begins with its line of times. In WebVTT its text ends with an empty line, as in
the specification (https://www.w3.org/TR/webvtt1/). In SubRip, which has none, the text
ends with the number before the next line of times, so that empty lines in a text do no
harm. Markup is removed; a voice tag of WebVTT (``<v Ann>``) names the speaker. In the
rolling captions of automatic recognition (YouTube) each cue shows the last line of the
one before once more; that line is removed.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, replace
from pathlib import Path

from speechllm.corpora.own_data.items import read_text_file
from speechllm.utils.errors import UserError

SUBTITLE_SUFFIXES = (".srt", ".vtt")
_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{2})[.,](\d{1,3})"
_TIMES = re.compile(rf"^\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?$")
_VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>", re.IGNORECASE)
_VTT_TAG = re.compile(r"<[^<>]*>")
_SRT_TAG = re.compile(r"</?(?:[ibus]|font|c)(?:\s[^<>]*)?>|\{\\[^{}]*\}", re.IGNORECASE)
_LEAST_ROLLING = 5  # cues that repeat a line and continue, of rolling captions
_SOUND = re.compile(r"\s*(?:\[[^\[\]]*\]|\([^()]*\)|[♪♫*#\s]+)\s*")


@dataclass(frozen=True)
class Cue:
    """Text spoken from ``start`` to ``end``, in seconds.

    Attributes:
        speaker: of a voice tag; empty without one.
        line: line number of the times in the file.
    """

    start: float
    end: float
    text: str
    speaker: str = ""
    line: int = 0


def read_subtitles(path: str | Path) -> list[Cue]:
    """Read the cues of a subtitle file, in the order of the file.

    Raises:
        UserError: the file is not UTF-8 or has no cue.
    """
    path = Path(path)
    text = read_text_file(path)
    cues = parse_subtitles(text, path.suffix.lower() == ".vtt")
    if not cues:
        raise UserError(
            f"{path}: no line of times such as '00:00:01,000 --> 00:00:02,500'; this "
            "is not a subtitle file"
        )
    return cues


def parse_subtitles(text: str, is_vtt: bool) -> list[Cue]:
    """Return the cues of a subtitle file's content; text lines are joined by spaces."""
    lines = re.split("\r\n|\r|\n", text.removeprefix("\ufeff"))
    found = [
        (n, match) for n, line in enumerate(lines) if (match := _TIMES.match(line))
    ]
    ends = [*(number for number, _ in found[1:]), len(lines)][: len(found)]
    cues, bodies = [], []
    for (number, match), end in zip(found, ends, strict=True):
        body = lines[number + 1 : end]
        if is_vtt:
            body = body[: next((i for i, s in enumerate(body) if not s), len(body))]
        elif end < len(lines):
            body = _without_number(body)
        content = "\n".join(body)
        voice = _VOICE.search(content) if is_vtt else None
        content = (_VTT_TAG if is_vtt else _SRT_TAG).sub("", content)
        content = html.unescape(content) if is_vtt else content
        bodies.append([words for s in content.split("\n") if (words := s.split())])
        start, stop = _seconds(match.groups()[:4]), _seconds(match.groups()[4:])
        speaker = " ".join(voice[1].split()) if voice else ""
        cues.append(Cue(start, stop, "", speaker, number + 1))
    repeats = _repeated_lines(bodies)
    return [
        replace(cue, text=" ".join(word for line in body[again:] for word in line))
        for cue, body, again in zip(cues, bodies, repeats, strict=True)
        if len(body) > again or not again
    ]


def _repeated_lines(bodies: list[list[list[str]]]) -> list[bool]:
    """Return for each cue of rolling captions whether its first line is a repeated one.

    Other subtitles, in which only a few cues continue a repeated line, have none.

    Args:
        bodies: words of each line of each cue.
    """
    repeats = [
        bool(before and own and before[-1] == own[0])
        for before, own in zip([[], *bodies], bodies)
    ]
    continued = sum(again and len(own) > 1 for again, own in zip(repeats, bodies))
    rolling = continued >= max(_LEAST_ROLLING, len(bodies) / 3)
    return repeats if rolling else [False] * len(bodies)


def is_sound(text: str) -> bool:
    """Return True for a description of a sound, such as ``[music]`` or ``♪``."""
    return bool(_SOUND.fullmatch(text))


def _without_number(body: list[str]) -> list[str]:
    """Remove the number of the next cue, which is the last line that is not empty."""
    last = next((i for i in reversed(range(len(body))) if body[i].strip()), None)
    if last is not None and body[last].strip().isdecimal():
        return body[:last]
    return body


def _seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, fraction = (part or "0" for part in parts)
    whole = int(hours) * 3600 + int(minutes) * 60 + int(seconds)
    return (whole * 1000 + int(fraction.ljust(3, "0"))) / 1000
