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
{A}-common_voice_en_5\tprepare_data\ttranslation marked REMOVE\tinto de: REMOVE\ten
{B}-common_voice_en_6\tprepare_data\tdamaged translation\t\
into de: Ihrer \ufffdbersetzung fehlt etwas.\ten
{B}-common_voice_en_7\tprepare_data\tempty translation\tinto de:\ten
{B}-common_voice_en_9\tprepare_data\tno audio file\tcommon_voice_en_9.mp3\ten
common_voice_en_10.mp3\tprepare_data\tin two sets\t\
common_voice_en_10.mp3 is in test too; covost_v2.en_de.tsv\ten
""",
}


@pytest.fixture
def corpus(tmp_path) -> Path:
    return write_corpus(tmp_path / "covost2")


def prepare(root: Path, tmp_path: Path, *directions: tuple[str, str]) -> Path:
    directions = directions or (("en", "de"),)
    prepare_covost2(root, root, tmp_path / "data", directions, min_share=0.5)
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
        ("common_voice_en_13.mp3", "not in the release")
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
    assert f"{path}: not found; unpack a Common Voice release" in error_message(
        corpus, tmp_path
    )


def test_clips_of_another_language_are_an_error(corpus, tmp_path):
    shutil.rmtree(corpus / "en/clips")
    shutil.copytree(corpus / "fr/clips", corpus / "en/clips")
    message = error_message(corpus, tmp_path)
    assert f"{corpus}/en/clips: contains none of CoVoST 2's clips" in message


def test_set_without_clips_is_an_error(corpus, tmp_path):
    (corpus / "en/clips/common_voice_en_20.mp3").unlink()
    with pytest.raises(UserError, match="no clip of the set dev is left; first "):
        prepare_covost2(corpus, corpus, tmp_path / "data", [("en", "de")], min_share=0)
    (left,) = (tmp_path / "data").iterdir()
    assert left.name == "missing_clips.tsv"


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
        + ["--min_share", "0.5"]
    )
    assert "| train | 9 | 5 |" in capsys.readouterr().out


def test_spaces_around_names_are_ignored(tmp_path):
    path = tmp_path / "covost_v2.en_de.tsv"
    path.write_bytes(b"path \t translation\tsplit  \r\n en_1.mp3 \tHallo\ttrain  \r\n")
    assert list(read_translations(path)) == [("en_1.mp3", "Hallo", "train")]


# Any Common Voice release


def write_later_release(root: Path, lost: int, invalidated: int = 0) -> Path:
    """Write CoVoST 2's train of 20 clips, dev and test of one, and a release of 2025.

    Args:
        lost: number of train clips that the release lacks.
        invalidated: number of train clips that are in ``invalidated.tsv``.
    """
    clips = root / "en/clips"
    clips.mkdir(parents=True)
    names = [f"common_voice_en_{number}.mp3" for number in range(22)]
    rows = [f"{n}\tSatz.\ttrain\n" for n in names[:20]]
    rows += [f"{names[20]}\tSatz.\tdev\n", f"{names[21]}\tSatz.\ttest\n"]
    header = "path\ttranslation\tsplit\n"
    (root / "covost_v2.en_de.tsv").write_text(header + "".join(rows))
    header = (
        "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes"
        "\tage\tgender\taccents\tvariant\tlocale\tsegment\n"
    )
    lines = [
        f"{'b' * 128}\t{name}\t{'0' * 64}\tA sentence.\tgeneral\t2\t0\t\t\t\t\ten\t\n"
        for name in [*names[lost:], "common_voice_en_41000000.mp3"]
    ]
    for table, part in (
        ("validated", lines[invalidated:]),
        ("invalidated", lines[:invalidated]),
        ("other", []),
    ):
        (root / f"en/{table}.tsv").write_text(header + "".join(part))
    for name in names[lost:]:
        (clips / name).touch()
    return root


def test_later_release_is_joined_by_clip_name(tmp_path, capsys):
    root = write_later_release(tmp_path / "c", lost=2, invalidated=3)
    options = ["--covost2_dir", str(root), "--src_lang", "en", "--tgt_lang", "de"]
    main(["covost2", *options, "--output", str(tmp_path / "data")])
    printed = capsys.readouterr().out.splitlines()
    assert "| train | 18 | 2 |" in printed
    assert printed[-5:] == [
        "train: 18 of 20 rows found (90.0 %)",
        "dev: 1 of 1 rows found (100.0 %)",
        "test: 1 of 1 rows found (100.0 %)",
        f"{tmp_path}/data/missing_clips.tsv lists the missing clips; they make scores "
        "incomparable",
        "en: 3 of these clips are in invalidated.tsv of the release",
    ]
    assert len(read_table(tmp_path / "data/train/text.de")) == 18
    listed = (tmp_path / "data/missing_clips.tsv").read_text().splitlines()[1:]
    assert listed == [
        f"train\tcommon_voice_en_{number}.mp3\tnot in the release\t"
        for number in (0, 1)
    ]


def test_release_with_too_few_clips_is_refused(tmp_path):
    root = write_later_release(tmp_path / "c", lost=3)
    data = tmp_path / "data"
    message = r"train: 17 of 20 rows found \(85.0 %\), fewer than --min_share 0.9"
    with pytest.raises(UserError, match=message):
        prepare_covost2(root, root, data, [("en", "de")])
    assert [path.name for path in data.iterdir()] == ["missing_clips.tsv"]
    prepare_covost2(root, root, data, [("en", "de")], min_share=0.85)
    assert len(read_table(data / "train/text")) == 17
    with pytest.raises(UserError, match="--min_share 1.5: give a share from 0 to 1"):
        prepare_covost2(root, root, data, [("en", "de")], min_share=1.5)


def test_shares_are_of_each_spoken_language(corpus, tmp_path):
    directions = [("en", "de"), ("fr", "en")]
    (corpus / "fr/clips/common_voice_fr_3.mp3").unlink()
    lines = prepare_covost2(corpus, corpus, tmp_path / "data", directions, 0)
    assert lines[:6] == [
        "train, en: 8 of 9 rows found (88.8 %)",
        "dev, en: 1 of 2 rows found (50.0 %)",
        "test, en: 3 of 3 rows found (100.0 %)",
        "train, fr: 1 of 1 rows found (100.0 %)",
        "dev, fr: 1 of 1 rows found (100.0 %)",
        "test, fr: 0 of 1 rows found (0.0 %)",
    ]
    lost = [(e.id, e.language) for e in read_dropped(tmp_path / "data/test")]
    assert lost == [(f"{C}-common_voice_fr_3", "fr")]
