"""JSUT: data dirs of its parts, and errors in its files."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from speechllm.bin.prepare_data import main
from speechllm.corpora.jsut import prepare_jsut
from speechllm.data.kaldi_table import read_table
from speechllm.data.validation import validate_data_dir
from speechllm.utils.errors import UserError

TRANSCRIPT = """\
BASIC5000_0002:木曜日、停戦会談は、何の進展もないまま終了しました。
BASIC5000_0001:水をマレーシアから買わなくてはならないのです。
BASIC5000_0003:上院議員は　私が:データをゆがめたと告発した。
BASIC5000_0004:
BASIC5000_0005:週に四回、フランスの授業があります。
"""


@pytest.fixture
def jsut(tmp_path):
    """A part with three utterances, one without a text and one without a file."""
    folder = tmp_path / "jsut_ver1.1" / "basic5000"
    (folder / "wav").mkdir(parents=True)
    (folder / "transcript_utf8.txt").write_text(TRANSCRIPT, "utf-8")
    for number in (1, 2, 3, 4):
        path = folder / "wav" / f"BASIC5000_{number:04d}.wav"
        soundfile.write(path, np.zeros(4800), 48000)
    return folder.parent


def test_tables_are_as_expected(jsut, tmp_path, capsys):
    data = tmp_path / "data"
    main(["jsut", "--jsut_dir", str(jsut), "--output", str(data)])
    out = data / "jsut_basic5000"
    assert capsys.readouterr().out == (
        f"{out}: 3 utterances; left out: 1 empty text, 1 no audio file\n"
    )
    wav = jsut.resolve() / "basic5000" / "wav"
    assert (out / "wav.scp").read_text() == "".join(
        f"BASIC5000_{n:04d} {wav}/BASIC5000_{n:04d}.wav\n" for n in (1, 2, 3)
    )
    assert (out / "text").read_text("utf-8") == (
        "BASIC5000_0001 水をマレーシアから買わなくてはならないのです。\n"
        "BASIC5000_0002 木曜日、停戦会談は、何の進展もないまま終了しました。\n"
        "BASIC5000_0003 上院議員は 私が:データをゆがめたと告発した。\n"
    )
    assert (out / "spk2utt").read_text() == (
        "jsut BASIC5000_0001 BASIC5000_0002 BASIC5000_0003\n"
    )
    assert set(read_table(out / "utt2lang").values()) == {"ja"}
    assert (out / "dropped.tsv").read_text() == (
        "BASIC5000_0004\tprepare_data\tempty text\tline 4\n"
        f"BASIC5000_0005\tprepare_data\tno audio file\t{wav}/BASIC5000_0005.wav\n"
    )
    assert validate_data_dir(out) == []


def test_wrong_folder_is_an_error(jsut, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        prepare_jsut(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError) as error:
        prepare_jsut(jsut / "basic5000", tmp_path / "out")
    assert "basic5000/basic5000/transcript_utf8.txt: not found" in str(error.value)
    assert "contains: transcript_utf8.txt, wav" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_missing_recordings_are_an_error(jsut, tmp_path):
    for path in (jsut / "basic5000" / "wav").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="no utterance is left .*no audio file"):
        prepare_jsut(jsut, tmp_path / "out")
    (jsut / "basic5000" / "wav").rmdir()
    with pytest.raises(UserError, match="wav: no such folder; unpack the whole corpus"):
        prepare_jsut(jsut, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TRANSCRIPT.encode("cp932"), "transcript_utf8.txt:1: not UTF-8"),
        (b"BASIC5000_0001 text\n", ":1: expected <utterance>:<text>"),
        (b"BASIC5000_0001:a\nBASIC5000_0001:b\n", "BASIC5000_0001 is listed twice"),
        (b"", "lists no utterance"),
    ],
)
def test_bad_transcript_is_an_error(jsut, tmp_path, content, message):
    (jsut / "basic5000" / "transcript_utf8.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare_jsut(jsut, tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))
