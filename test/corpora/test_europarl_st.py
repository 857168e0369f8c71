"""Europarl-ST: lists, speakers, several pairs, bad segments, download."""

from __future__ import annotations

import tarfile

import pytest
from europarl_st_corpus import CORPUS, SECONDS, write_audio, write_pair
from file_server import serve

from speechllm.audio.ffmpeg import stated_seconds
from speechllm.audio.io import audio_info
from speechllm.bin.prepare_data import main
from speechllm.corpora.europarl_st import (
    Segment,
    download_europarl_st,
    prepare_europarl_st,
    read_segments,
)
from speechllm.data.kaldi_table import read_dropped, read_table
from speechllm.data.validation import validate_data_dir
from speechllm.utils.errors import UserError


def reasons(folder) -> dict[str, str]:
    return {entry.id: entry.reason for entry in read_dropped(folder)}


def test_data_dirs_of_the_official_layout(tmp_path, capsys):
    root = write_pair(tmp_path / "corpus")
    words = ["--europarl_st_dir", str(root), "--output", str(tmp_path / "data")]
    main(["europarl_st", *words, "--src_lang", "en", "--tgt_lang", "de", "--noisy"])
    assert "| train | 2 | 0.0 | 0 |" in capsys.readouterr().out
    first = "Jean_Marie_Cavada_4330-en.20080924.3_243-0000000-0002500"
    second = "Jean_Marie_Cavada_4330-en.20080924.3_243-0002500-0004000"
    expected = {
        "text": {first: "Madam President, thank you.", second: "We agree."},
        "text.de": {first: "Frau Präsidentin, danke.", second: "Wir stimmen zu."},
        "segments": {
            first: "en.20080924.3_243 0.000 2.500",
            second: "en.20080924.3_243 2.500 4.000",
        },
        "utt2spk": dict.fromkeys((first, second), "Jean_Marie_Cavada_4330"),
        "utt2lang": dict.fromkeys((first, second), "en"),
        "wav.scp": {
            "en.20080924.3_243": f"{root}/v1.1/en/audios/en.20080924.3-243.m4a"
        },
    }
    for table, content in expected.items():
        assert read_table(tmp_path / "data/train" / table) == content, table
    sizes = {"train": 2, "train-noisy": 1, "dev": 1, "test": 1}
    for name, size in sizes.items():
        assert len(read_table(tmp_path / "data" / name / "text")) == size
        assert validate_data_dir(tmp_path / "data" / name) == []


def test_several_pairs_are_one_corpus(tmp_path):
    write_pair(tmp_path)
    french = {
        "train": [
            ("3-243", "0.00", "2.50", "Madam President, thank you.", "Merci."),
            ("9-001", "0.00", "1.00", "I have", "J'ai"),  # a speech of en-de's test
        ],
        "dev": [("4-018", "1.00", "3.25", "This is the dev set.", "")],
        "test": [("9-001", "0.00", "3.00", "I have 3 questions.", "J'ai 3 questions.")],
    }
    write_pair(tmp_path, "en", "fr", french)
    german = {name: CORPUS[name] for name in ("train", "dev", "test")}
    for target in ("en", "fr"):
        write_pair(tmp_path, "de", target, german)
    prepare_europarl_st(tmp_path, tmp_path / "data", ["en", "de"], ["de", "fr", "en"])
    train = tmp_path / "data/train"
    first = "Jean_Marie_Cavada_4330-en.20080924.3_243-0000000-0002500"
    assert read_table(train / "text.fr")[first] == "Merci."
    assert read_table(train / "text.de").keys() > {first}
    assert set(read_table(train / "utt2lang").values()) == {"de", "en"}
    assert len(read_table(train / "text")) == 4
    assert set(read_table(train / "text.en").values()) == {
        "Frau Präsidentin, danke.",
        "Wir stimmen zu.",
    }  # German speech: the texts of the second column
    assert reasons(train) == {
        "B_C_9-en.20080924.9_001-0000000-0001000": "speech also in test"
    }
    french_dev = read_table(tmp_path / "data/dev/text.fr")
    assert [key.split("-")[1] for key in french_dev] == ["de.20080924.4_018"]
    assert reasons(tmp_path / "data/dev") == {}
    with pytest.raises(UserError, match="no such folder; spoken languages are de en, "):
        prepare_europarl_st(tmp_path, tmp_path / "data", ["en"], ["it"])
    with pytest.raises(UserError, match="--src_lang en --tgt_lang en: no pair"):
        prepare_europarl_st(tmp_path, tmp_path / "data", ["en"], ["en"])


BAD = [
    ("3-243", "0.0", "1.0", "Good.", "Gut."),
    ("3-243", "0.0", "1.0", "Good.", "Gut."),
    ("3-243", "2.0", "2.0", "Empty.", "Leer."),
    ("3-243", "-1", "2.0", "Before.", "Davor."),
    ("3-243", "nan", "2.0", "Never.", "Nie."),
    ("3-243", "5.0", "6.3", "Hardly past.", "Kaum danach."),
    ("3-243", "5.0", "8.0", "Past.", "Danach."),
    ("3-243", "7.0", "8.0", "Later.", "Später."),
    ("5-555", "0.0", "1.0", "Missing.", "Fehlt."),
    ("6-666", "0.0", "1.0", "Broken.", "Kaputt."),
]


def test_segments_that_cannot_be_used(tmp_path):
    corpus = {"train": BAD, "dev": CORPUS["dev"], "test": [*CORPUS["test"], *BAD[5:8]]}
    corpus["test"][1:] = [("9-001", *row[1:]) for row in BAD[5:8]]
    write_pair(tmp_path, corpus=corpus)
    audios = tmp_path / "v1.1/en/audios"
    (audios / "en.20080924.5-555.m4a").unlink()
    (audios / "en.20080924.6-666.m4a").write_bytes(b"no audio")
    prepare_europarl_st(tmp_path, tmp_path / "data", ["en"], ["de"])
    texts = read_table(tmp_path / "data/train/text")
    assert list(texts.values()) == ["Good.", "Hardly past."]
    found = sorted(reasons(tmp_path / "data/train").values())
    assert found == [
        *["empty segment"] * 3,
        "listed twice",
        "no audio file",
        *["past the end of its speech"] * 2,
        "unreadable audio",
    ]
    # the test set stays whole: its segments end with their speech
    test = read_table(tmp_path / "data/test/segments")
    ends = [float(value.split()[2]) for value in test.values()]
    length = audio_info(audios / "en.20080924.9-001.m4a").seconds
    assert len(ends) == 3 and max(ends) == pytest.approx(length, abs=0.05)
    assert list(reasons(tmp_path / "data/test").values()) == [
        "past the end of its speech"
    ]


def test_converted_audio_is_preferred(tmp_path):
    write_pair(tmp_path, suffix=".wav")
    write_audio(tmp_path / "v1.1/en/audios/en.20080924.3-243.m4a")
    prepare_europarl_st(tmp_path / "v1.1", tmp_path / "data", ["en"], ["de"])
    paths = read_table(tmp_path / "data/train/wav.scp").values()
    assert [path.rpartition(".")[2] for path in paths] == ["wav"]


def test_the_stated_length_is_that_of_the_decoded_audio(tmp_path):
    path = tmp_path / "a.m4a"
    write_audio(path)
    assert stated_seconds(str(path)) == pytest.approx(SECONDS, abs=0.05)
    assert audio_info(path).seconds == pytest.approx(
        stated_seconds(str(path)), abs=0.05
    )
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"a\.m4a: not a media file"):
        stated_seconds(str(path))


def test_damaged_files_are_named(tmp_path):
    write_pair(tmp_path)
    place = tmp_path / "v1.1/en/de/train"

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            prepare_europarl_st(tmp_path, tmp_path / "data", ["en"], ["de"])
        assert not (tmp_path / "data").exists()

    whole = (place / "segments.lst").read_text()
    (place / "segments.lst").write_text(whole + "en.1 2\n")
    refused(r"segments\.lst:3: expected '<speech> <start> <end>' .*not 'en\.1 2'")
    (place / "segments.lst").write_text(whole + whole)
    refused(r"segments\.en: 2 lines for 4 segments")
    (place / "segments.lst").write_text(whole)
    (place / "speakers.lst").write_text("")
    refused("1 lines in speeches.lst, 0 in speakers.lst")
    (place / "speakers.lst").unlink()
    refused(r"speakers\.lst: no such file; unpack the whole corpus")
    for path in (tmp_path / "v1.1/en/audios").iterdir():
        path.unlink()
    refused("no segment of test can be used; no audio file: ")
    with pytest.raises(UserError, match="no folder <language>/audios in it, nor in"):
        prepare_europarl_st(place, tmp_path / "data", ["en"], ["de"])
    assert read_segments(place / "segments.lst")[1] == Segment(
        "en.20080924.3-243", 2.5, 4.0
    )


def test_the_download_is_resumed_and_done_once(tmp_path):
    write_pair(tmp_path / "made")
    archive = tmp_path / "v1.1.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made/v1.1", "v1.1")
    folder = tmp_path / "downloads"
    with serve({"/v1.1.tar.gz": archive.read_bytes()}) as server:
        server.faults = [-5000]  # the connection ends after 5,000 bytes
        download_europarl_st(folder, f"{server.url}/v1.1.tar.gz")
        assert [wanted for _, wanted in server.requests] == [None, "bytes=5000-"]
        (folder / "v1.1.tar.gz").unlink()
        download_europarl_st(folder, f"{server.url}/v1.1.tar.gz")
        assert len(server.requests) == 2
    prepare_europarl_st(folder, tmp_path / "data", ["en"], ["de"])
    assert len(read_table(tmp_path / "data/train/text")) == 2
