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
    main(["common_voice", *arguments, "--prefix", "cv8_", "--min_share", "0.6"])
    out = data / "cv8_test"
    assert capsys.readouterr().out.splitlines()[-5:] == [
        f"{out}: 3 utterances; left out: 1 bad row, 1 empty text, 1 no audio file",
        "train: 1 of 1 rows found (100.0 %)",
        "dev: 1 of 1 rows found (100.0 %)",
        "test: 4 of 6 rows found (66.6 %)",
        f"{data}/missing_clips.tsv lists the missing clips; they make scores "
        "incomparable",
    ]
    assert (data / "missing_clips.tsv").read_text("utf-8").splitlines() == [
        "split\tclip\treason\tdetail",
        "test\tcommon_voice_ja_404.mp3\tno audio file\t"
        f"{release.resolve()}/ja/clips/common_voice_ja_404.mp3",
        "test\ttest.tsv:7\tbad row\t10 fields where the header has 8",
    ]
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


# Releases and their columns, by Mozilla's changelog; 5.0 changed the order.
OLD = "client_id path sentence up_votes down_votes age gender accent"
NEW = (
    "client_id path sentence_id sentence sentence_domain up_votes down_votes age "
    "gender accents variant locale segment"
)
HEADERS = {
    "4": OLD,
    "5.0": "path sentence client_id gender age up_votes down_votes accent locale",
    "6.1": f"{OLD} locale segment",
    "8.0": f"{OLD}s locale segment",
    "13.0": f"{OLD}s variant locale segment",
    "17.0": NEW,
    "23.0": NEW,
}


def write_release(root, header: str, splits: dict[str, list[int]], clips) -> None:
    """Write a release with the columns of ``header`` and numbered clips."""
    folder = root / "ja"
    (folder / "clips").mkdir(parents=True)
    for number in clips:
        (folder / "clips" / f"common_voice_ja_{number}.mp3").write_bytes(b"mp3")
    for split, numbers in splits.items():
        lines = [header.replace(" ", "\t")]
        for number in numbers:
            values = {
                "client_id": f"{number % 7:x}" * 128,
                "path": f"common_voice_ja_{number}.mp3",
                "sentence": f"文{number}です。",
                "sentence_domain": "general,finance",
                "segment": "",
            }
            lines.append("\t".join(values.get(c, "x") for c in header.split()))
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", "utf-8")


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_columns_of_all_releases_are_read(tmp_path, header):
    write_release(tmp_path / "cv", header, {"test": [3, 9]}, [3, 9])
    prepare_common_voice(tmp_path / "cv", tmp_path / "data", splits=["test"])
    assert read_table(tmp_path / "data/test/text") == {
        "2222222222222222-common_voice_ja_9": "文9です。",
        "3333333333333333-common_voice_ja_3": "文3です。",
    }


def test_splits_of_another_release_are_joined_by_clip_name(tmp_path):
    """Test of 8.0 on the clips of 23.0, which lacks one of them."""
    eight = {"train": [1], "dev": [2], "test": list(range(10, 20))}
    write_release(tmp_path / "8", HEADERS["8.0"], eight, [])
    later = {"train": list(range(10, 16)), "dev": [2], "test": [30]}
    write_release(tmp_path / "23", HEADERS["23.0"], later, [1, 2, *range(11, 31)])
    results, lines = prepare_common_voice(
        tmp_path / "23", tmp_path / "data", split_dir=tmp_path / "8" / "ja"
    )
    assert lines[:3] == [
        "train: 1 of 1 rows found (100.0 %)",
        "dev: 1 of 1 rows found (100.0 %)",
        "test: 9 of 10 rows found (90.0 %)",
    ]
    assert results["test"][0] == 9
    clips = read_table(tmp_path / "data/test/wav.scp").values()
    assert {path.rpartition("_")[2] for path in clips} == {
        f"{number}.mp3" for number in range(11, 20)
    }
    assert all(path.startswith(f"{tmp_path.resolve()}/23/ja/clips") for path in clips)
    (missing,) = (tmp_path / "data/missing_clips.tsv").read_text().splitlines()[1:]
    assert missing.startswith("test\tcommon_voice_ja_10.mp3\tno audio file\t")


def test_too_few_clips_are_refused_and_listed(tmp_path):
    splits = {"train": [1], "dev": [2], "test": list(range(10, 20))}
    write_release(tmp_path / "cv", HEADERS["23.0"], splits, [1, 2, *range(12, 20)])
    data = tmp_path / "data"
    message = r"test: 8 of 10 rows found \(80.0 %\), fewer than --min_share 0.9; use a"
    with pytest.raises(UserError, match=message):
        prepare_common_voice(tmp_path / "cv", data)
    assert [path.name for path in data.iterdir()] == ["missing_clips.tsv"]
    listed = (data / "missing_clips.tsv").read_text().splitlines()
    assert [line.split("\t")[1] for line in listed[1:]] == [
        "common_voice_ja_10.mp3",
        "common_voice_ja_11.mp3",
    ]
    prepare_common_voice(tmp_path / "cv", data, min_share=0.8)
    assert len(read_table(data / "test/text")) == 8
    for number in (10, 11):  # once they are there, the list is gone
        (tmp_path / f"cv/ja/clips/common_voice_ja_{number}.mp3").write_bytes(b"mp3")
    assert prepare_common_voice(tmp_path / "cv", data)[1][-1].startswith("test: 10 of")
    assert not (data / "missing_clips.tsv").exists()
    with pytest.raises(UserError, match="--min_share 90: give a share from 0 to 1"):
        prepare_common_voice(tmp_path / "cv", data, min_share=90)


def test_file_of_the_user_is_not_replaced_by_the_list(release, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/missing_clips.tsv").write_text("my notes\n")
    with pytest.raises(UserError, match="missing_clips.tsv: not written by this"):
        prepare_common_voice(release, tmp_path / "data", min_share=0)
    assert (tmp_path / "data/missing_clips.tsv").read_text() == "my notes\n"


def test_espnets_train_set_is_validated_without_dev_and_test(tmp_path):
    splits = {"train": [1], "dev": [2, 3], "test": [4], "validated": list(range(1, 9))}
    write_release(tmp_path / "cv", HEADERS["8.0"], splits, range(1, 9))
    options = {"splits": ["train"], "train_split": "validated"}
    prepare_common_voice(tmp_path / "cv", tmp_path / "data", **options)
    texts = read_table(tmp_path / "data/train/text").values()
    assert sorted(texts) == [f"文{number}です。" for number in (1, 5, 6, 7, 8)]
    assert validate_data_dir(tmp_path / "data/train") == []
