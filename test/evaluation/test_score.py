"""Scores compared with hand-computed cases and with sacrebleu's command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from speechllm.bin.score import main
from speechllm.data.kaldi_table import Dropped, read_dropped, write_dropped
from speechllm.evaluation.groups import Group, read_groups, read_texts
from speechllm.evaluation.paper_tables import read_results
from speechllm.evaluation.recognition import align_lines, score_recognition, word_errors
from speechllm.evaluation.report import results_table, write_report
from speechllm.evaluation.score import SCORE_FILES, score_decode_dir
from speechllm.evaluation.translation import score_translation
from speechllm.utils.errors import UserError


def write_case(folder, references, tasks, hypotheses):
    """Write an example dir and a decode dir; each argument maps ids to lines."""
    examples, decode_dir = folder / "examples", folder / "exp" / "x" / "decode" / "test"
    examples.mkdir(parents=True)
    decode_dir.mkdir(parents=True)
    for path, table in (
        (examples / "text", references),
        (examples / "utt2task", tasks),
        (decode_dir / "text", hypotheses),
    ):
        lines = "".join(f"{key} {value}\n" for key, value in table.items())
        path.write_text(lines, encoding="utf-8")
    return examples, decode_dir


def values(rows):
    return {row["metric"]: row["value"] for row in rows}


# Recognition


def test_word_error_rate_is_micro_averaged():
    """Two errors in three words and two in two give 4 of 5, not the mean of 83.3 %."""
    group = Group(
        "asr", "en", "en", ["a", "b"], ["one two six", "red sky"], ["one tow", ""]
    )
    rows = {row["metric"]: row for row in score_recognition(group).rows}
    assert rows["wer"]["value"] == 80.0
    assert rows["wer"]["reference_words"] == 5
    counts = [
        rows["wer"][name] for name in ("substitutions", "deletions", "insertions")
    ]
    assert counts == [1, 3, 0]
    # "wo six" -> "ow": w deleted, o kept, one of four substituted, three deleted: 5;
    # "red sky": 7 deleted; of 11 + 7 characters
    assert rows["cer"]["reference_characters"] == 18
    assert rows["cer"]["value"] == round(100 * 12 / 18, 2)


def test_insertions_can_exceed_the_reference():
    group = Group("asr", "en", "en", ["a"], ["yes"], ["oh yes I know"])
    row = score_recognition(group).rows[0]
    assert (row["metric"], row["value"], row["insertions"]) == ("wer", 300.0, 3)


def test_only_raw_scores_count_case_and_punctuation():
    group = Group(
        "asr", "en", "en", ["a"], ["Please hold, thank you."], ["please hold thank you"]
    )
    scores = values(score_recognition(group).rows)
    assert scores["wer"] == 0 and scores["cer"] == 0
    assert scores["wer_raw"] == 75.0  # Please, hold, you.
    assert scores["cer_raw"] == round(100 * 3 / 23, 2)


def test_empty_hypotheses_give_one_hundred_percent():
    group = Group("asr", "en", "en", ["a", "b"], ["one two", "three"], ["", ""])
    scores = values(score_recognition(group).rows)
    assert set(scores.values()) == {100.0}


def test_japanese_has_only_a_character_error_rate():
    group = Group("asr", "ja", "ja", ["a"], ["今日は 晴れ。"], ["今日は雨"])
    scores = score_recognition(group)
    assert set(values(scores.rows)) == {"cer", "cer_raw"}
    assert values(scores.rows)["cer"] == 40.0  # 晴 deleted, れ -> 雨, of five
    assert scores.header[2] == "characters"


def test_alignment_marks_each_error_under_its_word():
    output = word_errors(["the cat sat"], ["the bat sat down"])
    lines = align_lines(
        output.references[0], output.hypotheses[0], output.alignments[0]
    )
    assert lines.splitlines() == [
        "REF: the cat sat *",
        "HYP: the bat sat down",
        "         S       I",
    ]


def test_wide_characters_take_two_columns_in_alignments():
    output = word_errors(["猫 が"], ["犬が が"])
    lines = align_lines(
        output.references[0], output.hypotheses[0], output.alignments[0]
    )
    assert lines.splitlines()[0] == "REF: 猫   が"


def test_worst_utterance_comes_first_and_correct_ones_last():
    group = Group(
        "asr", "en", "en", ["u1", "u2", "u3"],
        ["fine", "one two three", "good day"], ["fine", "x y z", "good bay"],
    )  # fmt: skip
    text = score_recognition(group).alignment
    places = [text.index(f"\n{name}:") for name in ("u2", "u3", "u1")]
    assert places == sorted(places)
    assert "u2: 3 errors in 3 (3 S, 0 D, 0 I)" in text
    assert "day -> bay" in text


def test_whispers_normaliser_gives_its_error_rate(tmp_path):
    """Three errors in three words as they are spoken, none in Whisper's form."""
    spelling = tmp_path / "whisper"
    spelling.mkdir()
    (spelling / "normalizer.json").write_text('{"colour": "color"}')
    examples, decode_dir = write_case(
        tmp_path,
        {"u1-asr-en": "It's the colour.", "u1-asr-ja": "１２ 時"},
        {"u1-asr-en": "asr en en", "u1-asr-ja": "asr ja ja"},
        {"u1-asr-en": "it is the color", "u1-asr-ja": "12時"},
    )
    arguments = ["--examples", str(examples), "--decode_dir", str(decode_dir)]
    found = {}
    for name in ("speechllm", f"whisper:{spelling}"):
        main([*arguments, "--normalizer", name])
        rows = json.loads((decode_dir / "score_asr_en" / "scores.json").read_text())
        found[name.partition(":")[0]] = {row["metric"]: row for row in rows}
    assert found["speechllm"]["wer"]["value"] == 100.0  # it's, +is, colour
    assert found["whisper"]["wer"]["value"] == 0.0
    assert found["whisper"]["wer"]["reference_words"] == 4
    for name, rows in found.items():
        assert rows["wer"]["normalizer"].startswith(f"{name}|")
        assert rows["cer"]["normalizer"] == rows["wer"]["normalizer"]
        assert "normalizer" not in rows["wer_raw"]
    assert len({rows["wer_raw"]["value"] for rows in found.values()}) == 1


@pytest.mark.parametrize("name", ["none", "whisper:", "speechllm:x", ""])
def test_another_normaliser_is_an_error(tmp_path, name):
    arguments = ["--examples", str(tmp_path), "--decode_dir", str(tmp_path)]
    with pytest.raises(UserError, match="--normalizer takes speechllm, whisper or"):
        main([*arguments, "--normalizer", name])


# Translation


def test_bleu_chrf_and_ter_by_hand():
    """Four of five words in order: all precisions 1, brevity penalty exp(1 - 5/4)."""
    group = Group("st", "fr", "en", ["a"], ["a b c d e"], ["a b c d"])
    scores = values(score_translation(group).rows)
    assert scores["bleu"] == 77.88
    assert scores["ter"] == 20.0  # one insertion in five words


def test_identical_translation_is_perfect():
    sentence = "Le numéro que vous avez composé est occupé."
    scores = values(
        score_translation(Group("st", "en", "fr", ["a"], [sentence], [sentence])).rows
    )
    assert scores == {
        "bleu": 100.0, "chrf": 100.0, "ter": 0.0,
        "bleu_normalized": 100.0, "chrf_normalized": 100.0,
    }  # fmt: skip


def test_normalised_translation_ignores_case_and_punctuation():
    group = Group(
        "st",
        "en",
        "fr",
        ["a"],
        ["Bonjour, au revoir, à bientôt !"],
        ["bonjour au revoir à bientôt"],
    )
    scores = values(score_translation(group).rows)
    assert scores["bleu_normalized"] == 100.0
    assert scores["bleu"] < 50


def test_empty_translation_scores_zero_and_does_not_fail():
    scores = values(
        score_translation(Group("st", "en", "fr", ["a"], ["Au revoir."], [""])).rows
    )
    assert scores["bleu"] == 0 and scores["chrf"] == 0 and scores["ter"] == 100


@pytest.mark.parametrize(
    "language, tokenizer", [("fr", "13a"), ("zh", "zh"), ("ja", "char")]
)
def test_signature_names_the_tokenizer(language, tokenizer):
    group = Group("st", "en", language, ["a"], ["今日は晴れです"], ["今日は雨です"])
    rows = {row["metric"]: row for row in score_translation(group).rows}
    assert f"tok:{tokenizer}" in rows["bleu"]["signature"]
    assert rows["chrf"]["signature"].startswith("nrefs:1|case:mixed")


def test_scores_equal_those_of_the_sacrebleu_command(tmp_path):
    """The sentences of sacrebleu's README, first reference."""
    references = [
        "The dog bit the man.",
        "It was not unexpected.",
        "The man bit him first.",
    ]
    hypotheses = [
        "The dog bit the man.",
        "It wasn't surprising.",
        "The man had just bitten him.",
    ]
    group = Group("st", "de", "en", ["a", "b", "c"], references, hypotheses)
    ours = score_translation(group).rows
    (tmp_path / "ref").write_text("\n".join(references) + "\n")
    (tmp_path / "hyp").write_text("\n".join(hypotheses) + "\n")
    command = [sys.executable, "-m", "sacrebleu", "ref", "-i", "hyp", "-w", "2"]
    command += ["-m", "bleu", "chrf", "ter"]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    theirs = json.loads(result.stdout)
    assert [row["value"] for row in ours[:3]] == [row["score"] for row in theirs]
    assert [row["signature"] for row in ours[:3]] == [
        row["signature"] for row in theirs
    ]


# Files

REFERENCES = {
    "u1-asr-en": "Good day.",
    "u1-st-fr": "Bonne journée.",
    "u2-asr-en": "Press one.",
    "u3-asr-fr": "Au revoir.",
}
TASKS = {
    "u1-asr-en": "asr en en",
    "u1-st-fr": "st en fr",
    "u2-asr-en": "asr en en",
    "u3-asr-fr": "asr fr fr",
}
HYPOTHESES = {
    "u1-asr-en": "good day",
    "u1-st-fr": "Bonne journée.",
    "u2-asr-en": "",
    "u3-asr-fr": "au revoir",
}


def test_decode_dir_is_scored_by_group(tmp_path):
    shuffled = dict(reversed(HYPOTHESES.items()))
    examples, decode_dir = write_case(tmp_path, REFERENCES, TASKS, shuffled)
    rows, left_out = score_decode_dir(examples, decode_dir)
    assert left_out == []
    found = {
        (row["task"], row["language"], row["target_language"], row["metric"]): row
        for row in rows
    }
    assert len(found) == len(rows) == 4 + 4 + 5
    assert found["asr", "en", "en", "wer"]["value"] == 50.0
    assert found["asr", "en", "en", "wer"]["utterances"] == 2
    assert found["asr", "fr", "fr", "wer"]["value"] == 0.0
    assert found["st", "en", "fr", "bleu"]["utterances"] == 1
    folders = sorted(path.name for path in decode_dir.glob("score_*"))
    assert folders == ["score_asr_en", "score_asr_fr", "score_st_en_fr"]
    table = (decode_dir / "score_asr_en" / "scores.tsv").read_text(encoding="utf-8")
    assert table.splitlines() == [
        "id\terrors\twords\trate\treference\thypothesis",
        "u1-asr-en\t0\t2\t0.00\tgood day\tgood day",
        "u2-asr-en\t2\t2\t100.00\tpress one\t",
    ]
    stored = json.loads((decode_dir / "score_asr_en" / "scores.json").read_text())
    assert stored == [
        row for row in rows if row["task"] == "asr" and row["language"] == "en"
    ]


def test_the_real_time_factor_is_a_row_of_every_group(tmp_path):
    """30 s for 240 s of speech are a factor of 0.125."""
    examples, decode_dir = write_case(tmp_path, REFERENCES, TASKS, HYPOTHESES)
    timing = {"examples": 3, "seconds": 30.0, "audio_seconds": 240.0}
    path = decode_dir / "rtf.json"
    path.write_text(json.dumps(timing | {"devices": ["a GPU, float16", "a CPU"]}))
    rows, left_out = score_decode_dir(examples, decode_dir)
    assert left_out == []
    rtf = {(r["task"], r["language"]): r for r in rows if r["metric"] == "rtf"}
    assert set(rtf) == {("asr", "en"), ("asr", "fr"), ("st", "en")}
    assert {row["value"] for row in rtf.values()} == {0.125}
    write_report(tmp_path / "exp", tmp_path / "RESULTS")
    report = (tmp_path / "RESULTS.md").read_text()
    header, _, line = report.split("(st)")[1].strip().splitlines()[:3]
    assert header.endswith("| chrF norm. | RTF |") and line.endswith(" | 0.125 |")
    assert (
        "- x/decode test: 30 s for 240 s of 3 examples; a GPU, float16; a CPU" in report
    )
    found = read_results(tmp_path / "RESULTS.json")
    assert found["x", "decode", "test", "st", "en", "fr", "rtf"] == 0.125


@pytest.mark.parametrize("content", ["{", "[]", '{"seconds": 1, "audio_seconds": 0}'])
def test_a_damaged_time_is_reported_and_all_else_is_scored(tmp_path, content):
    examples, decode_dir = write_case(tmp_path, REFERENCES, TASKS, HYPOTHESES)
    (decode_dir / "rtf.json").write_text(content)
    rows, (warning,) = score_decode_dir(examples, decode_dir)
    assert len(rows) == 4 + 4 + 5
    assert warning == f"no real-time factor: {decode_dir / 'rtf.json'} is damaged"


def test_scoring_again_writes_the_same_files_and_removes_stale_groups(tmp_path):
    examples, decode_dir = write_case(tmp_path, REFERENCES, TASKS, HYPOTHESES)
    score_decode_dir(examples, decode_dir)
    first = {p: p.read_bytes() for p in decode_dir.rglob("*") if p.is_file()}
    (decode_dir / "score_st_en_de").mkdir()  # of a release without markers
    for name in SCORE_FILES:
        (decode_dir / "score_st_en_de" / name).touch()
    (decode_dir / "score_mine").mkdir()
    (decode_dir / "score_mine/scores.json").touch()
    first[decode_dir / "score_mine/scores.json"] = b""
    score_decode_dir(examples, decode_dir)
    assert {p: p.read_bytes() for p in decode_dir.rglob("*") if p.is_file()} == first
    assert not (decode_dir / "score_st_en_de").exists()


def test_missing_hypothesis_is_named(tmp_path):
    fewer = {key: HYPOTHESES[key] for key in ("u1-asr-en", "u3-asr-fr")}
    examples, decode_dir = write_case(tmp_path, REFERENCES, TASKS, fewer)
    with pytest.raises(UserError, match=r"u1-st-fr is missing \(2 of 4 ids .* its 2"):
        score_decode_dir(examples, decode_dir)
    assert not list(decode_dir.glob("score_*"))


def test_unknown_hypothesis_is_named(tmp_path):
    more = HYPOTHESES | {"u9-asr-en": "what"}
    examples, decode_dir = write_case(tmp_path, REFERENCES, TASKS, more)
    with pytest.raises(UserError, match=r"u9-asr-en is not in .* \(1 of its 5 ids"):
        score_decode_dir(examples, decode_dir)


def test_example_without_task_is_named(tmp_path):
    fewer = {key: TASKS[key] for key in TASKS if key != "u2-asr-en"}
    examples, decode_dir = write_case(tmp_path, REFERENCES, fewer, HYPOTHESES)
    with pytest.raises(UserError, match="utt2task: u2-asr-en is missing"):
        score_decode_dir(examples, decode_dir)


@pytest.mark.parametrize("text", ["", " ", "♪ ♪"])
def test_insertions_count_where_the_reference_has_no_words(tmp_path, text):
    """Two insertions at an empty reference and none elsewhere: 2 of 2 words."""
    examples, decode_dir = write_case(
        tmp_path,
        {"u1-asr-en": "One two.", "u2-asr-en": text, "u3-st-fr": "♪ ♪"},
        {"u1-asr-en": "asr en en", "u2-asr-en": "asr en en", "u3-st-fr": "st en fr"},
        {"u1-asr-en": "one two", "u2-asr-en": "oh no", "u3-st-fr": "♪ ♪"},
    )
    rows, _ = score_decode_dir(examples, decode_dir)
    wer = next(row for row in rows if row["metric"] == "wer")
    assert (wer["value"], wer["reference_words"], wer["insertions"]) == (100.0, 2, 2)
    lines = (decode_dir / "score_asr_en" / "scores.tsv").read_text().splitlines()
    assert lines[2].split("\t") == ["u2-asr-en", "2", "0", "100.00", "", "oh no"]
    chrf = next(row for row in rows if row["metric"] == "chrf")
    assert chrf["value"] == 100.0


def test_dropped_utterances_are_counted_per_group(tmp_path):
    examples, decode_dir = write_case(
        tmp_path,
        {"u1-asr-en": "one", "u1-st-fr": "un", "u2-asr-en": "two"},
        {"u1-asr-en": "asr en en", "u1-st-fr": "st en fr", "u2-asr-en": "asr en en"},
        {"u1-asr-en": "one", "u1-st-fr": "un", "u2-asr-en": "two"},
    )
    write_dropped(
        examples,
        [
            Dropped("u2", "make_examples", "no translation into fr", "st en fr"),
            Dropped("u3", "format_audio", "cannot be read"),
        ],
    )
    rows, _ = score_decode_dir(examples, decode_dir)
    assert {(r["task"], r["utterances"], r["dropped"]) for r in rows} == {
        ("asr", 2, 1),
        ("st", 1, 2),
    }
    report = results_table(
        [row | {"set": "test", "system": "x", "decode": "d"} for row in rows], "st"
    )
    assert "| 1 of 3 |" in report


def test_dropped_utterances_are_counted_by_their_language(tmp_path):
    """In a set of two spoken languages, as those of CoVoST 2."""
    examples, decode_dir = write_case(
        tmp_path,
        {"u1-asr-en": "one", "u2-asr-fr": "deux"},
        {"u1-asr-en": "asr en en", "u2-asr-fr": "asr fr fr"},
        {"u1-asr-en": "one", "u2-asr-fr": "deux"},
    )
    dropped = [
        Dropped(f"e{number}", "prepare_data", "no audio file", "", "en")
        for number in range(1234)
    ]
    dropped.append(Dropped("unknown", "prepare_data", "bad row"))
    write_dropped(examples, dropped)
    assert read_dropped(examples)[0] == dropped[0]
    rows, _ = score_decode_dir(examples, decode_dir)
    counts = {(r["language"], r["utterances"], r.get("dropped")) for r in rows}
    assert counts == {("en", 1, 1234), ("fr", 1, None)}
    report = results_table(
        [row | {"set": "test", "system": "x", "decode": "d"} for row in rows], "asr"
    )
    assert "| en | 1 of 1,235 |" in report and "| fr | 1 |" in report


def test_byte_order_mark_of_a_text_is_skipped(tmp_path):
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfa one\nb two\n")
    assert read_texts(tmp_path / "text") == {"a": "one", "b": "two"}


@pytest.mark.parametrize("line", ["asr en", "asr en en en", ""])
def test_malformed_task_is_named(tmp_path, line):
    examples, decode_dir = write_case(
        tmp_path, REFERENCES, TASKS | {"u2-asr-en": line}, HYPOTHESES
    )
    with pytest.raises(UserError, match="utt2task.*u2-asr-en"):
        read_groups(examples, decode_dir / "text")


def test_recognition_into_another_language_is_an_error(tmp_path):
    examples, decode_dir = write_case(
        tmp_path, REFERENCES, TASKS | {"u2-asr-en": "asr en fr"}, HYPOTHESES
    )
    with pytest.raises(UserError, match="u2-asr-en.*from en into fr"):
        score_decode_dir(examples, decode_dir)


def test_task_without_a_scorer_is_reported(tmp_path, capsys):
    examples, decode_dir = write_case(
        tmp_path, REFERENCES, TASKS | {"u1-st-fr": "tts en fr"}, HYPOTHESES
    )
    main(["--examples", str(examples), "--decode_dir", str(decode_dir)])
    captured = capsys.readouterr()
    assert "asr en wer 50.00" in captured.out
    assert "tts_en_fr: 1 examples of task 'tts' are not scored" in captured.err


def test_unfinished_decoding_is_an_error(tmp_path):
    examples, decode_dir = write_case(tmp_path, REFERENCES, TASKS, HYPOTHESES)
    (decode_dir / "text").unlink()
    with pytest.raises(UserError, match="finish the decoding"):
        score_decode_dir(examples, decode_dir)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"a one\nb two\na three\n", ":3: id a is listed twice"),
        (b"a one\nb \xff\n", ":2: not UTF-8"),
        (b"a one\n\nb two\n", ":2: empty line"),
    ],
)
def test_bad_text_files_are_named_with_their_line(tmp_path, content, message):
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_texts(tmp_path / "text")


def test_white_space_in_texts_becomes_one_space(tmp_path):
    (tmp_path / "text").write_text("a one\ttwo　three \nb\n", encoding="utf-8")
    assert read_texts(tmp_path / "text") == {"a": "one two three", "b": ""}
