"""Reader of subtitles, against the packages srt and webvtt-py, which write them."""

from __future__ import annotations

import io
from datetime import timedelta

import pytest
import srt
import webvtt
from hypothesis import given
from hypothesis import strategies as st

from speechllm.corpora.own_data.subtitle_text import (
    is_sound,
    parse_subtitles,
    read_subtitles,
)
from speechllm.inference.subtitles import Cue, format_vtt
from speechllm.utils.errors import UserError

LINE = st.text(
    st.characters(exclude_categories=("C", "Z"), exclude_characters="<>{}&-"),
    min_size=1,
).filter(lambda line: not line.isdecimal())
TEXT = st.lists(LINE, min_size=1, max_size=3)
MS = st.integers(0, 400 * 3600 * 1000)
CUES = st.lists(st.tuples(MS, st.integers(1, 20_000), TEXT), min_size=1, max_size=5)


@given(CUES)
def test_srt_as_the_package_writes_it(cues):
    subtitles = [
        srt.Subtitle(
            number,
            timedelta(milliseconds=start),
            timedelta(milliseconds=start + length),
            "\n".join(lines),
        )
        for number, (start, length, lines) in enumerate(cues, 1)
    ]
    written = srt.compose(subtitles, reindex=False)
    found = parse_subtitles(written, is_vtt=False)
    expected = [(s / 1000, (s + n) / 1000, " ".join(t)) for s, n, t in cues]
    assert [(cue.start, cue.end, cue.text) for cue in found] == expected
    crlf = "\ufeff" + written.replace("\n", "\r\n")
    assert [c.text for c in parse_subtitles(crlf, False)] == [e[2] for e in expected]


@given(CUES)
def test_vtt_as_the_package_writes_it(cues):
    document = webvtt.WebVTT()
    for start, length, lines in cues:
        times = [
            f"{ms // 3600000:02d}:{ms // 60000 % 60:02d}:{ms // 1000 % 60:02d}."
            f"{ms % 1000:03d}"
            for ms in (start, start + length)
        ]
        document.captions.append(webvtt.Caption(*times, "\n".join(lines)))
    stream = io.StringIO()
    document.write(stream)
    found = parse_subtitles(stream.getvalue(), is_vtt=True)
    expected = [(s / 1000, (s + n) / 1000, " ".join(t)) for s, n, t in cues]
    assert [(cue.start, cue.end, cue.text) for cue in found] == expected


@given(st.text(st.characters(exclude_categories=("C", "Z")), min_size=1))
def test_our_own_vtt_is_read_back_unchanged(text):
    (found,) = parse_subtitles(format_vtt([Cue(1.25, 3661.5, (text,))]), is_vtt=True)
    assert (found.start, found.end, found.text) == (1.25, 3661.5, text)


def test_markup_voices_notes_and_empty_lines(tmp_path):
    vtt = (
        "WEBVTT Kind: captions\n\nNOTE a note\n\nSTYLE\n::cue {}\n\nintro\n"
        "00:01.000 --> 00:02.500 align:start position:0%\n<v.loud Ann B>Tea &amp; <i>a"
        "</i> cake</v>\n\n7\n00:03.000 --> 00:04.000\n42\n\n"
    )
    (tmp_path / "a.vtt").write_text(vtt)
    one, two = read_subtitles(tmp_path / "a.vtt")
    assert (one.start, one.end, one.text) == (1.0, 2.5, "Tea & a cake")
    assert one.speaker == "Ann B" and one.line == 9
    assert (two.text, two.speaker) == ("42", "")
    old = (
        "1\r\n00:00:01,5 --> 00:00:02,000 X1:40\r\n{\\an8}<font color=red>5 < 6</font>"
        "\r\n\r\nafter an empty line\r\n\r\n"
        "2\r\n00:00:03,000 --> 00:00:04,000\r\n12\r\n"
    )
    (tmp_path / "b.srt").write_text(old, encoding="utf-16")
    one, two = read_subtitles(tmp_path / "b.srt")
    assert (one.start, one.text) == (1.5, "5 < 6 after an empty line")
    assert two.text == "12"


def test_files_that_are_no_subtitles(tmp_path):
    (tmp_path / "a.srt").write_text("Hello\n")
    with pytest.raises(UserError, match=r"a\.srt: no line of times"):
        read_subtitles(tmp_path / "a.srt")
    (tmp_path / "b.srt").write_bytes(
        "1\n00:00:01,0 --> 00:00:02,0\nGrüße".encode("cp1252")
    )
    with pytest.raises(UserError, match=r"b\.srt: not UTF-8 \(byte 0xfc at 30\)"):
        read_subtitles(tmp_path / "b.srt")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("[music]", True), ("♪ ♪", True), ("(laughs)", True), ("(Yes) and no", False)],
)
def test_descriptions_of_sounds(text, expected):
    assert is_sound(text) is expected


@pytest.mark.parametrize("is_vtt", [True, False])
def test_repeated_lines_of_rolling_captions_are_removed(is_vtt):
    """As YouTube writes them: each line once while it is spoken, then 10 ms, above."""
    lines = [f"line number {word}" for word in "one two three four five six".split()]
    cues, before = [], " "
    for second, line in enumerate(lines):
        cues += [
            (second, second + 0.99, before, line.replace("number", "<c>number</c>"))
        ]
        cues += [(second + 0.99, second + 1, line, " ")]
        before = line
    stamp = "00:00:{:06.3f} --> 00:00:{:06.3f}"
    blocks = []
    for number, (start, end, *shown) in enumerate(cues, 1):
        times = stamp.format(start, end)
        times = times if is_vtt else f"{number}\n{times.replace('.', ',')}"
        blocks.append("\n".join([times, *shown, ""]))
    found = parse_subtitles("\n".join(blocks), is_vtt)
    assert [cue.text for cue in found] == lines
    assert [(cue.start, cue.end) for cue in found] == [(n, n + 0.99) for n in range(6)]


def test_lines_that_are_spoken_twice_are_kept():
    spoken = ["No.", "No.", "No.\nYes.", "Yes.", "Yes.", "Yes.\nNo.", "No."] * 3
    text = "".join(
        f"00:{n:02d}.000 --> 00:{n:02d}.900\n{s}\n\n" for n, s in enumerate(spoken)
    )
    found = parse_subtitles(text, is_vtt=True)
    assert [cue.text for cue in found] == [s.replace("\n", " ") for s in spoken]
