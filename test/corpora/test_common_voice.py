"""Common Voice: quoted fields, missing clips, columns of several releases."""

from __future__ import annotations

import pytest

from speechllm.bin.prepare_data import main
from speechllm.corpora._common_voice_tsv import read_clips, unquote
from speechllm.corpora.common_voice import prepare_common_voice
from speechllm.data.kaldi_table import read_table
from speechllm.data.validation import validate_data_dir
from speechllm.utils.errors import UserError

ALICE, BERTA = "a1" * 64, "b2" * 64
HEADER = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\n"


def row(client: str, path: str, sentence: str) -> str:
    return f"{client}\t{path}\t{sentence}\t2\t0\t\t\t\n"


TEST = HEADER + (
    row(BERTA, "common_voice_ja_2.mp3", '"""はい""と言った。"')
    + row(ALICE, "common_voice_ja_10.mp3", "　今日は  良い天気です。 ")
    + row(ALICE, "common_voice_ja_9.mp3", '"何？"と"誰？"')
    + row(ALICE, "common_voice_ja_404.mp3", "この音声は無い。")
    + row(BERTA, "common_voice_ja_3.mp3", '""')
    + f"{ALICE}\tcommon_voice_ja_4.mp3\tタブの\t多い\t文\t2\t0\t\t\t\n"
)


@pytest.fixture
def release(tmp_path):
    """A release whose test split has every special case, and small train and dev."""
    folder = tmp_path / "cv-corpus-8.0-2022-01-19" / "ja"
    (folder / "clips").mkdir(parents=True)
    for number in (2, 3, 4, 5, 6, 9, 10):
        (folder / "clips" / f"common_voice_ja_{number}.mp3").write_bytes(b"mp3")
    (folder / "test.tsv").write_text(TEST, "utf-8")
    for name, number in (("train", 5), ("dev", 6)):
        text = HEADER + row("c3" * 64, f"common_voice_ja_{number}.mp3", name)
        (folder / f"{name}.tsv").write_text(text, "utf-8")
    return folder.parent


def test_tables_are_as_expected(release, tmp_path, capsys):
    data = tmp_path / "data"
    arguments = ["--common_voice_dir", str(release), "--output", str(data)]
    main(["common_voice", *arguments, "--prefix", "cv8_"])
    out = data / "cv8_test"
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"{out}: 3 utterances; left out: 1 bad row, 1 empty text, 1 no audio file"
    )
    alice, berta = ALICE[:16], BERTA[:16]
    clips = release.resolve() / "ja" / "clips"
    assert (out / "text").read_text("utf-8") == (
        f"{alice}-common_voice_ja_10 今日は 良い天気です。\n"
        f'{alice}-common_voice_ja_9 "何？"と"誰？"\n'
        f'{berta}-common_voice_ja_2 "はい"と言った。\n'
    )
    assert (out / "wav.scp").read_text() == (
        f"{alice}-common_voice_ja_10 {clips}/common_voice_ja_10.mp3\n"
        f"{alice}-common_voice_ja_9 {clips}/common_voice_ja_9.mp3\n"
        f"{berta}-common_voice_ja_2 {clips}/common_voice_ja_2.mp3\n"
    )
    assert (out / "spk2utt").read_text() == (
        f"{alice} {alice}-common_voice_ja_10 {alice}-common_voice_ja_9\n"
        f"{berta} {berta}-common_voice_ja_2\n"
    )
    assert (out / "dropped.tsv").read_text("utf-8") == (
        f"{berta}-common_voice_ja_3\tprepare_data\tempty text\tcommon_voice_ja_3.mp3\n"
        "common_voice_ja_404.mp3\tprepare_data\tno audio file\t"
        f"{clips}/common_voice_ja_404.mp3\n"
        "test.tsv:7\tprepare_data\tbad row\t10 fields where the header has 8\n"
    )
    for name in ("cv8_train", "cv8_dev", "cv8_test"):
        assert validate_data_dir(data / name) == []


def test_clips_of_the_oldest_releases_lack_the_extension(release, tmp_path):
    text = HEADER + row(ALICE, "common_voice_ja_9", "はい")
    (release / "ja" / "test.tsv").write_text(text, "utf-8")
    prepare_common_voice(release, tmp_path / "data", splits=["test"])
    (path,) = read_table(tmp_path / "data" / "test" / "wav.scp").values()
    assert path.endswith("/clips/common_voice_ja_9.mp3")


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ('"""Yes,"" he said."', '"Yes," he said.'),
        ('"Yes," he said.', '"Yes," he said.'),
        ('"a" and "b"', '"a" and "b"'),
        ('"plain"', "plain"),
        ('"', '"'),
        ('""', ""),
        (" a ", "a"),
    ],
)
def test_quotation_marks_around_a_whole_field_are_removed(field, text):
    assert unquote(field) == text


def test_byte_order_mark_and_crlf_are_accepted(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes("\ufeffpath\tsentence\r\na.mp3\tx\u2028y\r\n\r\n".encode())
    assert list(read_clips(path, ["sentence", "path"])) == [
        {"sentence": "x\u2028y", "path": "a.mp3"}
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.tsv: the file is empty"),
        (b"path\ttext\n", ":1: the column 'sentence' is missing; .*: path, text"),
        (b"path\tsentence\tpath\n", "'path' is listed twice"),
        (b"path\tsentence\na\n", ":2: 1 fields where the header has 2"),
        ("path\tsentence\na\t日本\n".encode("cp932"), ":2: not UTF-8"),
        ("日本\n".encode("utf-16"), ":1: not UTF-8"),
    ],
)
def test_bad_tsv_is_an_error(tmp_path, content, message):
    path = tmp_path / "a.tsv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_clips(path, ["path", "sentence"]))


def test_wrong_folder_is_an_error(release, tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        prepare_common_voice(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match="/ja/ja: not found; .* contains: clips, dev"):
        prepare_common_voice(release / "ja", tmp_path / "out")
    (release / "ja" / "dev.tsv").unlink()
    with pytest.raises(UserError, match="dev.tsv: no such file; unpack the whole"):
        prepare_common_voice(release, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_clip_in_two_splits_is_an_error(release, tmp_path):
    text = HEADER + row("d4" * 64, "common_voice_ja_5.mp3", "train")
    (release / "ja" / "dev.tsv").write_text(text, "utf-8")
    with pytest.raises(UserError, match="common_voice_ja_5.mp3 is also in train.tsv"):
        prepare_common_voice(release, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_split_is_written_if_one_is_empty(release, tmp_path):
    (release / "ja" / "test.tsv").write_text(HEADER, "utf-8")
    with pytest.raises(UserError, match=r"test\.tsv: lists no clip"):
        prepare_common_voice(release, tmp_path / "out")
    assert not (tmp_path / "out").exists()
