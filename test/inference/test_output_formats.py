"""Output formats of ``speechllm transcribe``, read back by other programs."""

from __future__ import annotations

import csv
import io
import json
from itertools import pairwise

import pytest

from speechllm.decoding.result import Result, Segment, Word
from speechllm.inference.long_form import Transcription
from speechllm.inference.output_formats import fill_gaps, format_transcription

WORDS = [
    Word('say "yes"', 0.5, 0.9, 0.91),
    Word("now,", 0.9, 1.25, 0.5),
    Word("Käthe", 3.0, 3.5, 1.0),
]
SEGMENTS = [Segment(0.4, 1.3, 'say "yes" now,'), Segment(2.9, 3.6, "Käthe\tB")]


def transcription(words=WORDS, **more) -> Transcription:
    text = " ".join(segment.text for segment in SEGMENTS)
    result = Result(text, ["a"], -1.5, words=words, passages=SEGMENTS)
    return Transcription(4.0, result, **more)


def test_json_has_the_names_of_whisper():
    found = transcription(language="en", language_probability=0.98765)
    line = format_transcription("a.wav", found, "json", "en")
    assert line.count("\n") == 1
    entry = json.loads(line)
    assert entry == json.loads(format_transcription("a.wav", found, "json", "en", 2))
    assert (entry["language"], entry["language_probability"]) == ("en", 0.9877)
    assert entry["text"] == 'say "yes" now, Käthe B'
    first, second = entry["segments"]
    assert first == {
        "id": 0,
        "start": 0.4,
        "end": 1.3,
        "text": 'say "yes" now,',
        "words": [
            {"word": 'say "yes"', "start": 0.5, "end": 0.9, "probability": 0.91},
            {"word": "now,", "start": 0.9, "end": 1.25, "probability": 0.5},
        ],
    }
    assert second["words"][0]["word"] == "Käthe"
    assert "passages" not in entry and "words" not in entry
    plain = json.loads(format_transcription("a", transcription(None), "json", "en"))
    assert "words" not in plain["segments"][0] and "language" not in plain
    failed = Transcription(0.0, None, "unreadable")
    entry = json.loads(format_transcription("a", failed, "json", "en"))
    assert entry == {"name": "a", "seconds": 0.0, "error": "unreadable"}


def test_txt_and_tsv_have_a_line_for_each_segment():
    found = transcription()
    assert format_transcription("a", found, "txt", "en") == (
        'say "yes" now,\nKäthe B\n'
    )
    text = format_transcription("a", found, "tsv", "en")
    rows = list(csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert rows == [
        ["start", "end", "text"],
        ["400", "1300", 'say "yes" now,'],
        ["2900", "3600", "Käthe B"],
    ]


def test_ctm_has_six_columns():
    text = format_transcription("my talk.wav", transcription(), "ctm", "en")
    rows = [line.split(" ") for line in text.splitlines()]
    assert rows == [
        ["my_talk.wav", "1", "0.500", "0.400", 'say_"yes"', "0.9100"],
        ["my_talk.wav", "1", "0.900", "0.350", "now,", "0.5000"],
        ["my_talk.wav", "1", "3.000", "0.500", "Käthe", "1.0000"],
    ]
    assert format_transcription("a", transcription(None), "ctm", "en") is None


def test_textgrid_is_read_by_praatio(tmp_path):
    praatio = pytest.importorskip("praatio.textgrid")
    path = tmp_path / "a.TextGrid"
    path.write_text(format_transcription("a", transcription(), "TextGrid", "en"))
    grid = praatio.openTextgrid(str(path), includeEmptyIntervals=False)
    assert grid.tierNames == ("segments", "words")
    assert (grid.minTimestamp, grid.maxTimestamp) == (0, 4.0)
    segments, words = (
        [tuple(entry) for entry in grid.getTier(name).entries]
        for name in grid.tierNames
    )
    assert segments == [(0.4, 1.3, 'say "yes" now,'), (2.9, 3.6, "Käthe B")]
    assert words == [(w.start, w.end, w.text) for w in WORDS]
    empty = Transcription(0.0, Result("", [], 0.0, passages=[]))
    path.write_text(format_transcription("a", empty, "TextGrid", "en"))
    praatio.openTextgrid(str(path), includeEmptyIntervals=True)


def test_intervals_cover_a_recording_once():
    rows = [(0.0, 0.5, "a"), (0.4, 0.4, "b"), (0.9, 2.0, "c")]
    found = fill_gaps(rows, 1.5)
    assert found[0][0] == 0.0 and found[-1][1] == 1.5
    assert all(start < end for start, end, _ in found)
    assert all(one[1] == other[0] for one, other in pairwise(found))
    assert [text for *_, text in found] == ["a", "b", "", "c"]
    assert fill_gaps([], 2.0) == [(0.0, 2.0, "")]


@pytest.mark.parametrize("form", ["txt", "tsv", "srt", "vtt", "ctm", "TextGrid"])
def test_failed_recordings_have_no_file(form):
    failed = Transcription(0.0, None, "unreadable")
    assert format_transcription("a", failed, form, "en") is None
