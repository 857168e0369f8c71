"""MuST-C: data dirs of small corpora compared with files written by hand."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import yaml
from must_c_corpus import CORPUS, ENGLISH, GERMAN, write_language

from speechllm.bin.prepare_data import main
from speechllm.corpora.must_c import prepare_must_c, read_segments
from speechllm.data.format_wav_scp import format_audio
from speechllm.data.kaldi_table import parse_segment, read_dropped, read_table
from speechllm.data.validation import validate_data_dir
from speechllm.utils.errors import UserError

EXPECTED_TRAIN = {
    "text": """\
spk.1-ted_1-0000000-0002000 And it's truly a great honor to come here.
spk.1-ted_1-0002333-0003583 I said, "Yes." (Laughter)
spk.1-ted_1-0002333-0003583-2 I said, "Yes." (Laughter)
spk.1-ted_1-0007000-0008000
spk.1-ted_1-0009000-0010300 And this hardly.
spk.12-ted_12-0001080-0004580 Thank you so much, Chris.
""",
    "text.de": """\
spk.1-ted_1-0000000-0002000 Es ist mir wirklich eine Ehre.
spk.1-ted_1-0002333-0003583 Ich sagte: »Ja.« (Lachen)
spk.1-ted_1-0002333-0003583-2 Ich sagte: »Ja.« (Lachen)
spk.1-ted_1-0007000-0008000 Etwas.
spk.1-ted_1-0009000-0010300 Und das kaum.
spk.12-ted_12-0001080-0004580 Vielen Dank, Chris.
""",
    "segments": """\
spk.1-ted_1-0000000-0002000 ted_1 0.000 2.000
spk.1-ted_1-0002333-0003583 ted_1 2.333 3.583
spk.1-ted_1-0002333-0003583-2 ted_1 2.333 3.583
spk.1-ted_1-0007000-0008000 ted_1 7.000 8.000
spk.1-ted_1-0009000-0010300 ted_1 9.000 10.300
spk.12-ted_12-0001080-0004580 ted_12 1.080 4.580
""",
    "utt2spk": """\
spk.1-ted_1-0000000-0002000 spk.1
spk.1-ted_1-0002333-0003583 spk.1
spk.1-ted_1-0002333-0003583-2 spk.1
spk.1-ted_1-0007000-0008000 spk.1
spk.1-ted_1-0009000-0010300 spk.1
spk.12-ted_12-0001080-0004580 spk.12
""",
    "spk2utt": """\
spk.1 spk.1-ted_1-0000000-0002000 spk.1-ted_1-0002333-0003583 \
spk.1-ted_1-0002333-0003583-2 spk.1-ted_1-0007000-0008000 spk.1-ted_1-0009000-0010300
spk.12 spk.12-ted_12-0001080-0004580
""",
    "wav.scp": """\
ted_1 {root}/en-de/data/train/wav/ted_1.wav
ted_12 {root}/en-de/data/train/wav/ted_12.wav
""",
    "dropped.tsv": """\
spk.1-ted_1-0005000-0005000\tprepare_data\tempty segment\t5 to 5 s
spk.1-ted_1-0006000-0007000\tprepare_data\tno speech\t(Applause) ♫
spk.1-ted_1-0009000-0012000\tprepare_data\tpast the end of its talk\t\
9 to 12 s; ted_1.wav: 10.00 s
spk.3-ted_3-0000000-0001000\tprepare_data\tno audio file\t\
{root}/en-de/data/train/wav/ted_3.wav
spk.5-ted_5-0000000-0001000\tprepare_data\ttalk also in tst-COMMON\tted_5.wav
""",
}


@pytest.fixture
def corpus(tmp_path) -> Path:
    root = tmp_path / "MUSTC_v1.0"
    write_language(root, "de", CORPUS, ENGLISH, GERMAN)
    return root


def error_message(root: Path, tmp_path: Path, languages=("de",)) -> str:
    """Return the error message of a preparation that must write nothing."""
    with pytest.raises(UserError) as caught:
        prepare_must_c(root, tmp_path / "data", languages)
    left = list((tmp_path / "data").iterdir()) if (tmp_path / "data").exists() else []
    assert left == []
    return str(caught.value)


def test_tables_equal_those_written_by_hand(corpus, tmp_path):
    prepare_must_c(corpus, tmp_path / "data", ["de"])
    for name, expected in EXPECTED_TRAIN.items():
        found = (tmp_path / "data" / "train" / name).read_text("utf-8")
        assert found == expected.format(root=corpus), name
    languages = read_table(tmp_path / "data/train/utt2lang")
    assert set(languages.values()) == {"en"} and len(languages) == 6
    for name in CORPUS:
        assert validate_data_dir(tmp_path / "data" / name) == []


def test_test_sets_are_complete(corpus, tmp_path):
    prepare_must_c(corpus, tmp_path / "data", ["de"])
    common, he = tmp_path / "data/tst-COMMON", tmp_path / "data/tst-HE"
    assert read_table(common / "text") == {"spk.5-ted_5-0000000-0004000": "(Applause)"}
    assert read_table(he / "text.de") == {}
    assert read_dropped(common) == read_dropped(he) == []


def test_formatted_audio_has_the_listed_lengths(corpus, tmp_path):
    prepare_must_c(corpus, tmp_path / "data", ["de"])
    kept, failed = format_audio(tmp_path / "data/train", tmp_path / "audio")
    assert (kept, failed) == (6, [])
    samples = read_table(tmp_path / "audio/utt2num_samples")
    assert samples["spk.12-ted_12-0001080-0004580"] == "56000"
    assert samples["spk.1-ted_1-0009000-0010300"] == "16000"  # 0.3 s are missing


def test_test_sets_keep_segments_that_end_after_their_talk(tmp_path):
    """tst-HE: 4 s of talk; its third segment begins after them and cannot be kept."""
    lists = CORPUS | {
        "tst-HE": [
            ("2.000000", "1.000000", "spk.9", "ted_9.wav"),
            ("3.000000", "3.250000", "spk.9", "ted_9.wav"),
            ("1.000000", "4.100000", "spk.9", "ted_9.wav"),
        ]
    }
    texts = ["The end.", "And more.", "Lost."]
    write_language(
        tmp_path / "c",
        "de",
        lists,
        ENGLISH | {"tst-HE": texts},
        GERMAN | {"tst-HE": ["Der Schluss.", "Und mehr.", "Weg."]},
    )
    prepare_must_c(tmp_path / "c", tmp_path / "data", ["de"])
    he = tmp_path / "data/tst-HE"
    assert read_table(he / "segments") == {
        "spk.9-ted_9-0001000-0003000": "ted_9 1.000 3.000",
        "spk.9-ted_9-0003250-0006250": "ted_9 3.250 4.000",
    }
    assert list(read_table(he / "text.de").values()) == ["Der Schluss.", "Und mehr."]
    assert [(e.id, e.reason) for e in read_dropped(he)] == [
        ("spk.9-ted_9-0004100-0005100", "past the end of its talk")
    ]


def test_espnets_segments(tmp_path, monkeypatch):
    """Expected values are computed by hand from egs/must_c/st1/local/data_prep.sh."""
    unchanged = SimpleNamespace(normalize=lambda text: text)
    sacremoses = SimpleNamespace(MosesPunctNormalizer=lambda lang: unchanged)
    monkeypatch.setitem(sys.modules, "sacremoses", sacremoses)
    write_language(tmp_path / "c", "de", CORPUS, ENGLISH, GERMAN)
    prepare_must_c(tmp_path / "c", tmp_path / "data", ["de"], espnet=True)
    train = tmp_path / "data/train"
    assert read_table(train / "segments") == {
        "spk.1-ted_1-0000000-0002000": "ted_1 0.000 2.000",
        "spk.1-ted_1-0004900-0005100": "ted_1 4.900 5.100",  # 0 s, lengthened
        "spk.1-ted_1-0006000-0007000": "ted_1 6.000 7.000",  # applause
        "spk.1-ted_1-0007000-0008000": "ted_1 7.000 8.000",
        "spk.1-ted_1-0009000-0010300": "ted_1 9.000 10.300",
        "spk.12-ted_12-0001080-0004580": "ted_12 1.080 4.580",
        "spk.5-ted_5-0000000-0001000": "ted_5 0.000 1.000",  # a talk of tst-COMMON
    }
    dropped = [e.id for e in read_dropped(train) if e.reason == "listed more than once"]
    assert dropped == [f"spk.1-ted_1-0002333-0003583{n}" for n in ("", "-2")]
    assert validate_data_dir(train) == []


def test_punctuation_is_normalised_as_by_moses(tmp_path):
    """Of normalize-punctuation.perl: German quotation marks, dashes, dots."""
    german = GERMAN | {"dev": ["„Ja“ – sagte er … »so«."]}
    write_language(tmp_path / "c", "de", CORPUS, ENGLISH, german)
    prepare_must_c(tmp_path / "c", tmp_path / "data", ["de"], espnet=True)
    (text,) = read_table(tmp_path / "data/dev/text.de").values()
    assert text == '"Ja" - sagte er ... "so".'


def test_missing_sacremoses_is_one_line(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    with pytest.raises(UserError, match="run 'pip install sacremoses'"):
        prepare_must_c(corpus, tmp_path / "data", ["de"], espnet=True)
    assert not (tmp_path / "data").exists()


def test_languages_share_segments_with_the_same_times(corpus, tmp_path):
    lists = {
        "train": [
            ("2.000000", "0.000000", "spk.1", "ted_1.wav"),
            ("1.500000", "2.000000", "spk.1", "ted_1.wav"),
            ("5.000000", "0.000000", "spk.767", "ted_767.wav"),  # dev of German
        ],
        "dev": [("3.000000", "0.000000", "spk.12", "ted_12.wav")],
        "tst-COMMON": CORPUS["tst-COMMON"],
    }
    english = {"train": ["Other.", "So.", "Seen."], "dev": ["Hm."], "tst-COMMON": ["A"]}
    french = {
        "train": ["Un honneur.", "Voilà.", "Vu."],
        "dev": ["Hum."],
        "tst-COMMON": ["B"],
    }
    write_language(corpus, "fr", lists, english, french)
    sets = ("train", "dev", "tst-COMMON")
    prepare_must_c(corpus, tmp_path / "data", ["de", "fr"], sets)
    assert read_table(tmp_path / "data/train/text.fr") == {
        "spk.1-ted_1-0000000-0002000": "Un honneur.",
        "spk.1-ted_1-0002000-0003500": "Voilà.",
    }
    text = read_table(tmp_path / "data/train/text")
    assert text["spk.1-ted_1-0000000-0002000"].startswith("And it's")
    assert text["spk.1-ted_1-0002000-0003500"] == "So."
    dropped = {e.id: e.reason for e in read_dropped(tmp_path / "data/train")}
    assert dropped["spk.767-ted_767-0000000-0005000"] == "talk also in dev"
    # talk 12 is dropped from German's train set since it is in the dev set of French
    assert dropped["spk.12-ted_12-0001080-0004580"] == "talk also in dev"
    assert list(read_table(tmp_path / "data/tst-COMMON/text.fr").values()) == ["B"]
    for name in sets:
        assert validate_data_dir(tmp_path / "data" / name) == []


def test_talks_that_differ_between_languages_are_separate_recordings(corpus, tmp_path):
    write_language(corpus, "fr", CORPUS, ENGLISH, GERMAN)
    path = corpus / "en-fr/data/dev/wav/ted_767.wav"
    soundfile.write(path, np.zeros(16000 * 7, np.float32), 16000)
    prepare_must_c(corpus, tmp_path / "data", ["de", "fr"])
    assert read_table(tmp_path / "data/dev/wav.scp") == {
        "ted_767": str(corpus / "en-de/data/dev/wav/ted_767.wav"),
        "ted_767.fr": str(path),
    }


def test_lists_in_any_yaml_style_are_equal(tmp_path):
    rows = [
        {"duration": 3.5, "offset": 16.08, "speaker_id": "spk.767", "wav": "a, b.wav"},
        {"duration": 1.0, "offset": 0, "rW": 9, "speaker_id": "spk.1", "wav": "c.wav"},
    ]
    block, flow, long = (tmp_path / name for name in ("block", "flow", "long"))
    block.write_text(yaml.safe_dump(rows))
    flow.write_text(yaml.safe_dump(rows, default_flow_style=True, width=40))
    long.write_text(yaml.safe_dump(rows, default_flow_style=None))
    expected = [
        ("a, b.wav", "spk.767", 16.08, 16.08 + 3.5),
        ("c.wav", "spk.1", 0.0, 1.0),
    ]
    for path in (block, flow, long):
        assert read_segments(path) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- {duration: 1, offset: 2, wav: a.wav}\n", ":1: the segment has no 'speaker"),
        (
            "- {duration: 1, offset: x, speaker_id: s, wav: a.wav}\n",
            ":1: offset 'x' and duration '1' are not both numbers",
        ),
        (
            "- {duration: 1, offset: 2, speaker_id: s, wav: ''}\n",
            ":1: the segment's wav is empty",
        ),
        (
            "- {duration: 1, offset: 2, speaker_id: , wav: a.wav}\n",
            ":1: the segment's speaker_id is empty",
        ),
        ("- {duration: 1,\n- {duration", "not YAML"),
        ("- a\n", ":1: expected a list of segments"),
        ("- {duration: {a: 1}}\n", ":1: expected a list of segments"),
        ("- {duration: [1]}\n", ":1: expected a list of segments"),
    ],
)
def test_error_in_a_list_names_the_line(tmp_path, content, message):
    (tmp_path / "train.yaml").write_text(content)
    with pytest.raises(UserError) as caught:
        read_segments(tmp_path / "train.yaml")
    assert f"{tmp_path / 'train.yaml'}" in str(caught.value)
    assert message in str(caught.value)


def test_list_and_text_of_unequal_length_are_an_error(corpus, tmp_path):
    listed = corpus / "en-de/data/train/txt/train.yaml"
    listed.write_text("".join(listed.read_text().splitlines(True)[:-1]))
    message = error_message(corpus, tmp_path)
    assert f"{listed} 10" in message and "train.en 11" in message


def test_texts_of_unequal_length_are_an_error(corpus, tmp_path):
    text = corpus / "en-de/data/tst-HE/txt/tst-HE.de"
    text.write_text("eins\nzwei\n")
    message = error_message(corpus, tmp_path)
    assert "tst-HE.en 1" in message and f"{text} 2" in message


def test_wrong_folder_is_an_error(tmp_path, corpus):
    message = error_message(corpus / "en-de", tmp_path)
    assert "en-de/en-de/data/train/txt/train.yaml: not found" in message
    assert "contains no folder en-…" in message
    assert "contains en-de. Give the folder" in error_message(corpus, tmp_path, ["fr"])


def test_incomplete_corpus_is_an_error(corpus, tmp_path):
    shutil.rmtree(corpus / "en-de/data/tst-HE/txt")
    assert "tst-HE.yaml: not found" in error_message(corpus, tmp_path)


def test_set_without_talks_is_an_error(corpus, tmp_path):
    (corpus / "en-de/data/dev/wav/ted_767.wav").unlink()
    message = error_message(corpus, tmp_path)
    assert "dev.yaml: none of its segments can be used; no audio file" in message


def test_talk_that_is_not_audio_is_listed(corpus, tmp_path):
    (corpus / "en-de/data/train/wav/ted_12.wav").write_bytes(b"RIFF, but no more")
    prepare_must_c(corpus, tmp_path / "data", ["de"])
    dropped = {e.id: e.reason for e in read_dropped(tmp_path / "data/train")}
    assert dropped["spk.12-ted_12-0001080-0004580"] == "unreadable audio"


def test_wrong_encoding_is_an_error(corpus, tmp_path):
    text = corpus / "en-de/data/train/txt/train.de"
    text.write_bytes(text.read_text("utf-8").encode("latin-1", "replace"))
    message = error_message(corpus, tmp_path)
    assert "train.de:3: not UTF-8 (byte 0xbb)" in message


def test_failure_keeps_earlier_data(corpus, tmp_path):
    prepare_must_c(corpus, tmp_path / "data", ["de"])
    before = (tmp_path / "data/train/text").read_bytes()
    (corpus / "en-de/data/train/txt/train.de").write_bytes(b"\xff\n" * 11)
    with pytest.raises(UserError):
        prepare_must_c(corpus, tmp_path / "data", ["de"])
    assert (tmp_path / "data/train/text").read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == sorted(CORPUS)


def test_full_disk_is_one_line_and_leaves_no_files(corpus, tmp_path):
    command = f"ulimit -f 0; exec {sys.executable} -m speechllm.bin.prepare_data must_c"
    command += f" --must_c_dir {corpus} --tgt_lang de --output {tmp_path / 'data'}"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr.decode().startswith(f"error: File too large: {tmp_path}/data/")
    assert done.stderr.count(b"\n") == 1
    assert list((tmp_path / "data").iterdir()) == []


def test_translations_equal_those_of_lhotse(corpus, tmp_path):
    lhotse = pytest.importorskip("lhotse.recipes.must_c")
    prepare_must_c(corpus, tmp_path / "data", ["de"], ["dev"])
    texts = corpus / "en-de/data/dev/txt"
    segments = lhotse.load_yaml(texts / "dev.yaml")
    lines = (texts / "dev.de").read_text("utf-8").splitlines()
    group = (segments, lines)
    _, found = lhotse.parse_utterance(corpus / "en-de/data/dev/wav", group, "de")
    ours = read_table(tmp_path / "data/dev/segments")
    times = [parse_segment(value) for value in ours.values()]
    assert times == [(s.recording_id, s.start, s.end) for s in found]
    assert list(read_table(tmp_path / "data/dev/text.de").values()) == [
        s.text for s in found
    ]


def test_command_line(corpus, tmp_path, capsys):
    arguments = ["--must_c_dir", str(corpus), "--tgt_lang", "de"]
    main(["must_c", *arguments, "--output", str(tmp_path / "data")])
    assert "| train | 6 | 0.0 | 5 |" in capsys.readouterr().out
