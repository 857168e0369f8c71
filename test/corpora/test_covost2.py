"""CoVoST 2: data dirs of a small corpus compared with files written by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas
import pytest
from covost2_corpus import write_corpus

from speechllm.bin.prepare_data import main
from speechllm.corpora.covost2 import (
    FROM_ENGLISH,
    INTO_ENGLISH,
    choose_directions,
    prepare_covost2,
    read_translations,
    two_letters,
)
from speechllm.data.format_wav_scp import format_audio
from speechllm.data.kaldi_table import (
    iterate_table,
    read_dropped,
    read_table,
    translation_languages,
)
from speechllm.data.validation import validate_data_dir
from speechllm.text.prompts import read_prompts
from speechllm.utils.errors import UserError

RECIPE = Path(__file__).parents[2] / "egs2/covost2/speechllm1"
A, B, C = "a" * 16, "b" * 16, "c" * 16
EXPECTED_TRAIN = {
    "text": f"""\
{A}-common_voice_en_2 "We need money," the other figure said.
{A}-common_voice_en_3 "Left" and "right" are not the same.
{A}-common_voice_en_4 A softhyphen, a space and a \\ backslash.
{A}-common_voice_en_5 Marked for removal.
{B}-common_voice_en_1 When water is scarce, avoid wasting it.
{B}-common_voice_en_6 Its translation lost a letter.
{B}-common_voice_en_7 It was not translated.
{B}-common_voice_en_8
""",
    "text.de": f"""\
{A}-common_voice_en_2 \"""Wir brauchen Geld"", sagte die andere Gestalt."
{A}-common_voice_en_3 "Links" und „rechts“ sind nicht dasselbe.
{A}-common_voice_en_4 Ein Backslash \\ und ein "Zeichen".
{B}-common_voice_en_1 Verschwende kein Wasser, wenn es knapp ist.
{B}-common_voice_en_8 Ein leerer Satz.
""",
    "utt2spk": f"""\
{A}-common_voice_en_2 {A}
{A}-common_voice_en_3 {A}
{A}-common_voice_en_4 {A}
{A}-common_voice_en_5 {A}
{B}-common_voice_en_1 {B}
{B}-common_voice_en_6 {B}
{B}-common_voice_en_7 {B}
{B}-common_voice_en_8 {B}
""",
    "dropped.tsv": f"""\
{A}-common_voice_en_5\tprepare_data\ttranslation marked REMOVE\tinto de: REMOVE
{B}-common_voice_en_6\tprepare_data\tdamaged translation\t\
into de: Ihrer \ufffdbersetzung fehlt etwas.
{B}-common_voice_en_7\tprepare_data\tempty translation\tinto de:
{B}-common_voice_en_9\tprepare_data\tno audio file\tcommon_voice_en_9.mp3
common_voice_en_10.mp3\tprepare_data\tin two sets\t\
common_voice_en_10.mp3 is in test too; covost_v2.en_de.tsv
""",
}


@pytest.fixture
def corpus(tmp_path) -> Path:
    return write_corpus(tmp_path / "covost2")


def prepare(root: Path, tmp_path: Path, *directions: tuple[str, str]) -> Path:
    prepare_covost2(root, root, tmp_path / "data", directions or [("en", "de")])
    return tmp_path / "data"


def error_message(root: Path, tmp_path: Path, *directions: tuple[str, str]) -> str:
    """Return the error message of a preparation that must write nothing."""
    with pytest.raises(UserError) as caught:
        prepare(root, tmp_path, *directions)
    data = tmp_path / "data"
    assert not data.exists() or list(data.iterdir()) == []
    return str(caught.value)


def test_tables_equal_those_written_by_hand(corpus, tmp_path):
    data = prepare(corpus, tmp_path)
    for name, expected in EXPECTED_TRAIN.items():
        assert (data / "train" / name).read_text("utf-8") == expected, name
    files = read_table(data / "train/wav.scp")
    clip = corpus / "en/clips/common_voice_en_1.mp3"
    assert files[f"{B}-common_voice_en_1"] == str(clip)
    for name in ("train", "dev", "test"):
        assert validate_data_dir(data / name) == []


def test_dev_and_test_keep_all_but_empty_translations(corpus, tmp_path):
    data = prepare(corpus, tmp_path)
    assert read_table(data / "test/text.de") == {
        f"{B}-common_voice_en_10": "Er steht in zwei Mengen.",
        f"{C}-common_voice_en_30": "Er prüft.",
        f"{C}-common_voice_en_31": "REMOVE",
    }
    assert read_table(data / "dev/text.de") == {
        f"{C}-common_voice_en_20": 'Ein " allein, und noch etwas.'
    }
    dropped = read_dropped(data / "dev")
    assert [(e.id, e.reason) for e in dropped] == [
        ("common_voice_en_13.mp3", "not in validated.tsv")
    ]


def test_several_directions_share_a_data_dir(corpus, tmp_path):
    data = prepare(corpus, tmp_path, ("en", "de"), ("en", "zh-CN"), ("fr", "en"))
    assert translation_languages(data / "train") == ["de", "en", "zh"]
    languages = read_table(data / "train/utt2lang")
    assert languages[f"{C}-common_voice_fr_1"] == "fr"
    assert languages[f"{B}-common_voice_en_1"] == "en"
    assert read_table(data / "train/text.en") == {f"{C}-common_voice_fr_1": "Hello."}
    assert read_table(data / "train/text.zh") == {
        f"{B}-common_voice_en_1": "缺水时，避免浪费。",
        f"{B}-common_voice_en_12": "根本没有翻译。",
    }
    text = read_table(data / "test/text")
    assert list(text.values()) == [
        "It stands in two sets.",
        "It tests.",
        "It tests what was marked.",
        "Au revoir.",
    ]
    for name in ("train", "dev", "test"):
        assert validate_data_dir(data / name) == []


def test_clips_that_cannot_be_decoded_are_listed(corpus, tmp_path):
    clips = corpus / "en/clips"
    (clips / "common_voice_en_1.mp3").write_bytes(b"")
    (clips / "common_voice_en_2.mp3").write_bytes(b"no audio at all" * 99)
    data = prepare(corpus, tmp_path)
    kept, failed = format_audio(data / "train", tmp_path / "audio")
    assert kept == 6
    assert [(e.id, e.reason) for e in failed] == [
        (f"{A}-common_voice_en_2", "unreadable audio"),
        (f"{B}-common_voice_en_1", "unreadable audio"),
    ]
    assert "empty (0 bytes)" in failed[1].detail
    samples = read_table(tmp_path / "audio/utt2num_samples")
    assert int(samples[f"{A}-common_voice_en_3"]) == pytest.approx(16000, abs=1600)


def test_rows_are_read_as_by_covosts_own_script(corpus):
    for path in corpus.glob("covost_v2.*.tsv"):
        table = pandas.read_csv(
            path,
            sep="\t",
            quoting=3,
            escapechar="\\",
            na_filter=False,
            encoding="utf-8",
        )
        expected = table[["path", "translation", "split"]].itertuples(index=False)
        assert list(read_translations(path)) == [tuple(row) for row in expected]


def test_row_that_lacks_fields_is_listed(corpus, tmp_path):
    with open(corpus / "covost_v2.en_de.tsv", "a", encoding="utf-8") as stream:
        stream.write("common_voice_en_12.mp3\tKein Split.\n")
    with open(corpus / "en/validated.tsv", "a", encoding="utf-8") as stream:
        stream.write("nothing\n")
    dropped = {e.id: e for e in read_dropped(prepare(corpus, tmp_path) / "train")}
    row = dropped["covost_v2.en_de.tsv:18"]
    assert row.reason == "bad row" and "2 fields, the header has 3" in row.detail
    assert dropped["en/validated.tsv:17"].reason == "bad row"


def test_stray_backslash_or_line_end_does_not_affect_other_rows(tmp_path):
    path = tmp_path / "covost_v2.en_de.tsv"
    rows = ["path\ttranslation\tsplit", "a\tEin\rs.\ttrain", "b\tZwei.\\\ttrain"]
    rows += ["c\tDrei.\ttrain\\", "d\tV\\\\ier.\ttrain"]
    path.write_bytes("".join(f"{row}\n" for row in rows).encode())
    problems = []
    assert list(read_translations(path, problems)) == [
        ("a", "Ein\rs.", "train"),
        ("c", "Drei.", "train"),
        ("d", "V\\ier.", "train"),
    ]
    assert problems == ["3: 2 fields, the header has 3"]


def test_each_direction_is_prepared_and_has_prompts(tmp_path):
    directions = choose_directions(["en", *INTO_ENGLISH], ["en", *FROM_ENGLISH])
    for number, source in enumerate(["en", *INTO_ENGLISH]):
        clips = tmp_path / source / "clips"
        clips.mkdir(parents=True)
        listed = ["client_id\tpath\tsentence\n"]
        for split in ("train", "dev", "test"):
            (clips / f"{source}_{split}.mp3").touch()
            client = f"{number:016x}" * 8
            listed.append(f"{client}\t{source}_{split}.mp3\tOne, in {source}.\n")
        (clips.parent / "validated.tsv").write_text("".join(listed))
    for source, target in directions:
        rows = [
            f"{source}_{split}.mp3\tInto {target}.\t{split}\n"
            for split in ("train", "dev", "test")
        ]
        path = tmp_path / f"covost_v2.{source}_{target}.tsv"
        path.write_text("path\ttranslation\tsplit\n" + "".join(rows))
    data = prepare(tmp_path, tmp_path, *directions)
    prompts = read_prompts(RECIPE / "conf" / "prompts.yaml")
    for name in ("train", "dev", "test"):
        assert validate_data_dir(data / name) == []
        languages = read_table(data / name / "utt2lang")
        found = set()
        for target in translation_languages(data / name):
            for key, text in iterate_table(data / name / f"text.{target}"):
                found.add((languages[key], target))
                assert two_letters(text.removeprefix("Into ").rstrip(".")) == target
        assert found == {(two_letters(s), two_letters(t)) for s, t in directions}
        for task in ("st", "asr_st"):
            assert all("speech" in prompts.text(task, *pair) for pair in found)


def test_directions_between_languages(tmp_path):
    pairs = choose_directions(["en", *INTO_ENGLISH], ["en", *FROM_ENGLISH])
    assert len(pairs) == 36 and len(INTO_ENGLISH) == 21 and len(FROM_ENGLISH) == 15
    assert choose_directions(["en", "fr"], ["de", "en"]) == [("en", "de"), ("fr", "en")]
    for sources, targets, language in (
        (["fr"], ["de"], "fr"),
        (["en"], ["de", "fr"], "fr"),
        (["zh"], ["en"], "zh"),
    ):
        with pytest.raises(UserError, match=f"for {language}; it goes from English"):
            choose_directions(sources, targets)


def test_wrong_folder_is_an_error(corpus, tmp_path):
    message = error_message(corpus / "en", tmp_path)
    assert f"{corpus}/en/covost_v2.en_de.tsv: not found" in message
    assert "contains no covost_v2.*.tsv" in message
    assert "covost_v2.fr_en.tsv. Unpack" in error_message(
        corpus, tmp_path, ("en", "tr")
    )


@pytest.mark.parametrize("name", ["validated.tsv", "clips"])
def test_incomplete_corpus_is_an_error(corpus, tmp_path, name):
    path = corpus / "en" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert f"{path}: not found; unpack Common Voice 4.0" in error_message(
        corpus, tmp_path
    )


def test_clips_of_another_language_are_an_error(corpus, tmp_path):
    shutil.rmtree(corpus / "en/clips")
    shutil.copytree(corpus / "fr/clips", corpus / "en/clips")
    message = error_message(corpus, tmp_path)
    assert f"{corpus}/en/clips: contains none of CoVoST 2's clips" in message


def test_set_without_clips_is_an_error(corpus, tmp_path):
    (corpus / "en/clips/common_voice_en_20.mp3").unlink()
    message = error_message(corpus, tmp_path)
    assert "no clip of the set dev is left; first " in message


def test_missing_columns_are_an_error(corpus, tmp_path):
    path = corpus / "covost_v2.en_de.tsv"
    text = path.read_text("utf-8")
    path.write_text(text.replace("translation", "translated", 1), "utf-8")
    message = error_message(corpus, tmp_path)
    assert message == (
        f"{path}: no column 'translation', only path, translated, split; "
        "unpack it again"
    )
    path.write_text(text, "utf-8")
    listed = corpus / "en/validated.tsv"
    listed.write_text(listed.read_text("utf-8").replace("sentence", "text", 1), "utf-8")
    message = error_message(corpus, tmp_path)
    assert str(listed) in message and "sentence" in message


def test_wrong_encoding_is_an_error(corpus, tmp_path):
    path = corpus / "covost_v2.en_de.tsv"
    content = path.read_text("utf-8").replace("\ufffd", "ü").replace("\ufeff", "")
    for mark in "„“":
        content = content.replace(mark, "'")
    path.write_bytes(content.encode("latin-1"))
    assert f"{path}:7: not UTF-8 (byte 0xfc)" in error_message(corpus, tmp_path)


def test_command_line(corpus, tmp_path, capsys):
    main(
        ["covost2", "--covost2_dir", str(corpus), "--src_lang", "en", "fr"]
        + ["--tgt_lang", "de", "en", "--output", str(tmp_path / "data")]
    )
    assert "| train | 9 | 5 |" in capsys.readouterr().out


def test_spaces_around_names_are_ignored(tmp_path):
    path = tmp_path / "covost_v2.en_de.tsv"
    path.write_bytes(b"path \t translation\tsplit  \r\n en_1.mp3 \tHallo\ttrain  \r\n")
    assert list(read_translations(path)) == [("en_1.mp3", "Hallo", "train")]
