"""Subtitles: cues and files, read back with the packages srt and webvtt-py."""

from __future__ import annotations

import io
import re
from html import unescape
from itertools import pairwise

import pytest
import srt
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st

from speechllm.decoding.result import Result, Segment, Word
from speechllm.inference.subtitles import Cue, format_srt, format_vtt, make_cues

TALK = (
    "Ladies & gentlemen, <this> talk --> is about speech; it goes on and on, for it "
    "must fill more than one cue of two lines, each of which holds forty-two letters "
    "at the very most. Thank you!"
)


def recording(*segments: tuple[float, float, str], words=None) -> Result:
    text = " ".join(text for *_, text in segments)
    listed = [Segment(*segment) for segment in segments]
    return Result(text, [], 0.0, words=words, passages=listed)


def read_vtt(content: str) -> list[tuple[float, float, list[str]]]:
    def seconds(time) -> float:
        hours = 60 * time.hours + time.minutes
        return 60 * hours + time.seconds + time.milliseconds / 1000

    return [
        (seconds(c.start_time), seconds(c.end_time), unescape(c.raw_text).split("\n"))
        for c in webvtt.from_string(content)
    ]


def read_srt(content: str) -> list[tuple[float, float, list[str]]]:
    return [
        (c.start.total_seconds(), c.end.total_seconds(), c.content.split("\n"))
        for c in srt.parse(content)
    ]


def test_both_formats_have_the_same_text_in_short_lines():
    cues = make_cues(recording((3723.5, 3735.25, TALK), (3740, 3742, "Bye.")), "en")
    vtt, subrip = read_vtt(format_vtt(cues)), read_srt(format_srt(cues))
    assert len(vtt) == len(subrip) == len(cues)
    for found in (vtt, subrip):
        for (start, end, lines), cue in zip(found, cues, strict=True):
            assert start == pytest.approx(cue.start, abs=0.0011)
            assert end == pytest.approx(cue.end, abs=0.0011)
            assert 1 <= len(lines) <= 2
            assert all(0 < len(line) <= 42 for line in lines)
    texts = [" ".join(" ".join(lines) for *_, lines in f) for f in (vtt, subrip)]
    assert texts[0] == TALK + " Bye."
    assert texts[1] == texts[0].replace("-->", "->").replace("<this>", "‹this›")
    assert vtt[0][0] == 3723.5
    assert vtt[-1][0] == 3740


def test_format_of_the_files():
    cues = [Cue(0, 1.0015, ("a < b", "& c")), Cue(359999.999, 360000.5, ("d",))]
    assert format_vtt(cues) == (
        "WEBVTT\n\n"
        "00:00:00.000 --> 00:00:01.002\na &lt; b\n&amp; c\n\n"
        "99:59:59.999 --> 100:00:00.500\nd\n"
    )
    assert format_srt(cues) == (
        "1\n00:00:00,000 --> 00:00:01,002\na < b\n& c\n\n"
        "2\n99:59:59,999 --> 100:00:00,500\nd\n"
    )
    assert format_vtt([]) == "WEBVTT\n"
    assert format_srt([]) == ""


def test_cues_follow_word_times():
    words = [
        Word("one", 1.0, 1.4, 1.0),
        Word("two", 1.5, 1.9, 1.0),
        Word("three", 4.0, 4.5, 1.0),  # after a pause
        Word("four", 11.0, 11.3, 1.0),
    ]
    segments = [(0.8, 5.0, "one two three"), (10.0, 12.0, "four")]
    cues = make_cues(recording(*segments, words=words), "en")
    assert [(c.start, c.end, c.lines) for c in cues] == [
        (1.0, 2.0, ("one two",)),  # shown for at least a second
        (4.0, 5.0, ("three",)),
        (11.0, 12.0, ("four",)),
    ]


def test_cues_without_word_times_are_proportional_to_characters():
    # a cue has 8 words of 10 characters with the space
    text = " ".join(["abcdefghi"] * 16)
    cues = make_cues(recording((10.0, 20.0, text)), "en")
    assert [(c.start, c.end) for c in cues] == [(10.0, 15.0), (15.0, 20.0)]


def test_japanese_lines_have_half_as_many_characters():
    text = "これはとても長い話ですから字幕は何枚にも分かれます。" * 4
    cues = make_cues(recording((0.0, 20.0, text)), "ja")
    assert "".join("".join(cue.lines) for cue in cues) == text
    assert all(len(line) <= 21 for cue in cues for line in cue.lines)
    assert all(len(cue.lines) <= 2 for cue in cues)


def test_empty_text_has_no_cues():
    assert make_cues(Result("", [], 0.0, passages=[]), "en") == []


@settings(max_examples=100)
@given(
    st.lists(st.text("ab.<&->é話", min_size=1, max_size=90), min_size=1, max_size=40),
    st.lists(st.floats(0.0, 30.0), min_size=1, max_size=4),
    st.sampled_from(["en", "ja"]),
)
def test_any_text_is_read_back(words, lengths, language):
    segments, time = [], 0.0
    for number, seconds in enumerate(lengths):
        segments.append((time, time + seconds, " ".join(words[number :: len(lengths)])))
        time += seconds
    result = recording(*[p for p in segments if p[2]])
    cues = make_cues(result, language)
    for cue, following in pairwise(cues):
        assert cue.start < cue.end <= following.start
    expected = "".join("".join(p.text.split()) for p in result.passages)
    for found in (read_vtt(format_vtt(cues)), read_srt(format_srt(cues))):
        assert len(found) == len(cues)
        text = "".join("".join("".join(lines).split()) for *_, lines in found)
        assert plain(text) == plain(expected)


def plain(text: str) -> str:
    """Return a text without the signs that SubRip cannot hold."""
    return re.sub("[-<>‹›]", "", text)


MARKUP = 'a <i>b</i> <font color="red">c d --> e ---> f {\\an8}g <x 1 < 2 > 0 & h\0'


def test_markup_of_a_text_is_shown_as_text():
    """FFmpeg turns SubRip's tags into ASS; none may be left to turn."""
    import av

    cues = make_cues(recording((0.0, 6.0, MARKUP)), "en")
    subrip = format_srt(cues)
    assert subrip.count("-->") == len(cues)
    text = " ".join(" ".join(lines) for *_, lines in read_srt(subrip))
    assert text == (
        'a ‹i›b‹/i› ‹font color="red"›c d -> e -> f (\\an8)g <x 1 ‹ 2 › 0 & h'
    )
    vtt = " ".join(" ".join(lines) for *_, lines in read_vtt(format_vtt(cues)))
    assert vtt == MARKUP.replace("\0", "")
    assert format_vtt(cues).count("-->") == len(cues)
    assert "<" not in format_vtt(cues)
    with av.open(io.BytesIO(subrip.encode()), format="srt") as container:
        shown = b" ".join(
            line.ass.split(b",", 8)[-1]
            for packet in container.demux(subtitles=0)
            for line in packet.decode()
        ).decode()
    assert "{" not in shown.replace("\\N", " ")  # ASS writes all styles in braces
    assert " ".join(shown.replace("\\N", " ").split()) == text


def test_subtitles_of_a_joint_task_are_the_translation():
    words = [Word("good", 2.0, 2.5, 1.0), Word("night", 2.5, 3.0, 1.0)]
    result = recording((0.0, 10.0, "bonne nuit"), words=words)
    result.transcript = "good night"
    [cue] = make_cues(result, "fr")
    assert cue == Cue(2.0, 3.0, ("bonne nuit",))


def test_every_word_is_in_one_cue():
    # the words of a hard cut: in the middle of the border, and outside of its segment
    words = [
        Word("one", 0.0, 1.0, 1.0),
        Word("two", 4.5, 5.5, 1.0),
        Word("three", 10.2, 10.4, 1.0),
    ]
    segments = [(0.5, 5.0, "one"), (5.0, 10.0, "two three")]
    cues = make_cues(recording(*segments, words=words), "en")
    assert [cue.lines for cue in cues] == [("one",), ("two",), ("three",)]


KINSOKU = (
    "そうです。「はい、」（注）と言った。ほんとうに、これは、"
    "とても長い話ですよ！？ええ、そうでしょうね。"
)


@pytest.mark.parametrize("language", ["ja", "zh"])
def test_no_line_begins_with_closing_punctuation(language):
    for shift in range(25):  # so that every character is at a border once
        text = "あ" * shift + KINSOKU * 3
        cues = make_cues(recording((0.0, 30.0, text)), language)
        lines = [line for cue in cues for line in cue.lines]
        assert "".join(lines) == text
        assert all(len(line) <= 21 for line in lines)
        assert not [line for line in lines if line[0] in "。、」）！？っょ"]
        assert not [line for line in lines if line[-1] in "「（"]


def test_a_line_of_punctuation_alone_is_broken():
    text = "。" * 50
    cues = make_cues(recording((0.0, 5.0, text)), "ja")
    assert "".join(line for cue in cues for line in cue.lines) == text
