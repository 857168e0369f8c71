"""Example dirs: tasks, weights and dropped utterances."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechllm.bin.make_examples import main
from speechllm.data.data_dir import filter_data_dir, write_data_dir
from speechllm.data.examples import make_examples
from speechllm.data.kaldi_table import read_dropped, read_table
from speechllm.data.validation import validate_data_dir
from speechllm.text.tasks import Task, parse_task
from speechllm.utils.errors import UserError


def make_data(folder, utterances: dict, **tables):
    """Write a formatted data dir of (language, transcript) per utterance."""
    write_data_dir(
        folder,
        {
            "wav.scp": {utt: f"audio/{utt}.flac" for utt in utterances},
            "utt2spk": dict.fromkeys(utterances, "s"),
            "utt2lang": {utt: lang for utt, (lang, _) in utterances.items()},
            "utt2num_samples": dict.fromkeys(utterances, "16000"),
            "text": {utt: text for utt, (_, text) in utterances.items()},
            **tables,
        },
    )
    return folder


@pytest.fixture
def data(tmp_path):
    return make_data(
        tmp_path / "data",
        {
            "en-a": ("en", "Hello, you!"),
            "en-a-b": ("en", "Good-bye."),
            "en-c": ("en", "…"),
            "fr-a": ("fr", "Salut toi"),
        },
        **{"text.fr": {"en-a": "Salut,  toi !"}, "text.en": {"fr-a": "Hello you"}},
    )


def test_examples_of_several_tasks(data, tmp_path):
    target = tmp_path / "examples"
    counts, dropped = make_examples(
        [data], target, ["asr:en", "asr:fr", "st:en:fr", "asr_st:en:fr"]
    )
    assert counts == {"asr en en": 2, "asr fr fr": 1, "st en fr": 1, "asr_st en fr": 1}
    assert read_table(target / "text") == {
        "en-a-asr-en": "Hello, you!",
        "en-a-asr_st-fr": "Hello, you!\tSalut, toi !",
        "en-a-b-asr-en": "Good-bye.",
        "en-a-st-fr": "Salut, toi !",
        "fr-a-asr-fr": "Salut toi",
    }
    ctc_texts = read_table(target / "text_ctc")
    assert ctc_texts["en-a-st-fr"] == "hello you"
    assert ctc_texts["en-a-b-asr-en"] == "good bye"
    assert read_table(target / "utt2task")["en-a-st-fr"] == "st en fr"
    assert read_table(target / "utt2lang")["en-a-st-fr"] == "en"
    assert read_table(target / "wav.scp")["en-a-st-fr"] == "audio/en-a.flac"
    assert validate_data_dir(target, check_files=False) == []
    assert {(entry.id, entry.reason) for entry in dropped} == {
        ("en-a-b", "no translation into fr"),
        ("en-c", "transcript empty after normalisation"),
    }
    assert read_dropped(target) == sorted(dropped, key=lambda entry: entry.id)


def test_plain_transcripts_leave_translations_unchanged(data, tmp_path):
    main(
        ["--input", str(data), "--tasks", "asr:en st:en:fr", "--plain_transcripts"]
        + ["--output", str(tmp_path / "examples")]
    )
    assert read_table(tmp_path / "examples" / "text") == {
        "en-a-asr-en": "hello you",
        "en-a-b-asr-en": "good bye",
        "en-a-st-fr": "Salut, toi !",
    }


def test_examples_of_several_data_dirs(data, tmp_path):
    other = make_data(tmp_path / "other", {"en-b": ("en", "More.")})
    make_examples([data, other], tmp_path / "examples", ["asr:en"])
    examples = list(read_table(tmp_path / "examples" / "text"))
    assert examples == ["en-a-asr-en", "en-a-b-asr-en", "en-b-asr-en"]
    with pytest.raises(UserError, match="en-a-asr-en is in two data dirs"):
        make_examples([data, data], tmp_path / "twice", ["asr:en"])
    assert not (tmp_path / "twice").exists()


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["asr:de"], "no utterance of .* is in 'de'; spoken there: en, fr"),
        (["st:en:de"], r"no translations into 'de' \(text.de\); there are: en, fr"),
        (["asr:en", "asr:en"], "task 'asr en en' is given twice"),
        (["asr"], "expected asr:<lang>"),
        (["asr:en:fr"], "expected asr:<lang>"),
        (["st:en"], "expected asr:<lang>"),
        (["sing:en"], "expected asr:<lang>"),
    ],
)
def test_invalid_tasks_are_errors(data, tmp_path, tasks, message):
    with pytest.raises(UserError, match=message):
        make_examples([data], tmp_path / "examples", tasks)
    assert not (tmp_path / "examples").exists()


def test_unformatted_data_dir_is_an_error(data, tmp_path):
    (data / "utt2num_samples").unlink()
    with pytest.raises(UserError, match="utt2num_samples: missing; format the audio"):
        make_examples([data], tmp_path / "examples", ["asr:en"])


def test_parse_task():
    assert parse_task("asr:en") == Task("asr", "en", "en")
    assert parse_task("asr_st:en:fr") == Task("asr_st", "en", "fr")


names = st.text("abs-.!0_~", min_size=1, max_size=5)


@given(st.sets(names, min_size=1, max_size=12))
@settings(max_examples=50)
def test_examples_are_sorted_for_any_utterance_ids(tmp_path_factory, utterances):
    folder = tmp_path_factory.mktemp("ids")
    source = make_data(folder / "data", dict.fromkeys(utterances, ("en", "a")))
    counts, _ = make_examples([source], folder / "examples", ["asr:en"])
    examples = read_table(folder / "examples" / "text")  # raises if unsorted
    assert len(examples) == len(utterances) == counts["asr en en"]


def test_command_line(data, tmp_path, capsys):
    target = tmp_path / "examples"
    arguments = ["--input", str(data), "--output", str(target)]
    main([*arguments, "--tasks", "asr:en asr:fr", "st:en:fr"])
    assert capsys.readouterr().out.splitlines() == [
        f"{target}: 2 examples of asr en en",
        f"{target}: 1 examples of asr fr fr",
        f"{target}: 1 examples of st en fr",
        f"{target}: 1 left out: no translation into fr",
        f"{target}: 1 left out: transcript empty after normalisation",
    ]


def test_weights_repeat_and_subsample_examples(tmp_path):
    texts = {f"u{number:03d}": ("en", f"word {number}") for number in range(200)}
    data = make_data(tmp_path / "data", texts)
    counts, _ = make_examples([data], tmp_path / "twice", ["asr:en*2"])
    assert counts == {"asr en en": 400}
    names = list(read_table(tmp_path / "twice" / "text"))
    assert names[:3] == ["u000-asr-en", "u000-asr-en-2", "u001-asr-en"]
    make_examples([data], tmp_path / "half", ["asr:en*0.5"])
    half = read_table(tmp_path / "half" / "text")
    assert 70 < len(half) < 130
    make_examples([data], tmp_path / "more", ["asr:en*1.5"])
    more = read_table(tmp_path / "more" / "text")
    # weight 1.5 repeats exactly the utterances that weight 0.5 selects
    assert {name for name in more if name.endswith("-2")} == {n + "-2" for n in half}
    make_examples([data], tmp_path / "again", ["asr:en*0.5"])
    again = (tmp_path / "again" / "text").read_bytes()
    assert again == (tmp_path / "half" / "text").read_bytes()


def test_weight_of_a_data_dir_multiplies_task_weights(data, tmp_path):
    def examples(source, task):
        make_examples([source], tmp_path / "examples", [task])
        return (tmp_path / "examples/text").read_text("utf-8")

    for factor in (0.5, 1.5, 2):
        assert examples(f"{data}*{factor}", "asr:en*3") == examples(
            data, f"asr:en*{3 * factor}"
        )
    with pytest.raises(UserError, match=r"more\*x': a weight is a number above 0"):
        make_examples([data, "more*x"], tmp_path / "examples", ["asr:en"])


@pytest.mark.parametrize("weight", ["0", "-1", "x", "", "nan", "inf"])
def test_invalid_weights_are_errors(data, tmp_path, weight):
    with pytest.raises(UserError, match="a weight is a number above 0"):
        make_examples([data], tmp_path / "examples", [f"asr:en*{weight}"])


def test_translation_into_the_source_language_is_an_error():
    with pytest.raises(UserError, match="asr_st:en:en.*the same"):
        parse_task("asr_st:en:en")


def test_test_sets_keep_utterances_without_words(tmp_path):
    data = make_data(
        tmp_path / "data",
        {"en-a": ("en", "♪ ♪"), "en-b": ("en", ""), "en-c": ("en", "Yes.")},
        **{"text.fr": {"en-a": "♪", "en-b": ""}},
    )
    tasks = ["asr:en", "st:en:fr", "asr_st:en:fr"]
    make_examples([data], tmp_path / "test", tasks, keep_empty=True)
    assert read_table(tmp_path / "test" / "text") == {
        "en-a-asr-en": "♪ ♪",
        "en-a-asr_st-fr": "♪ ♪\t♪",
        "en-a-st-fr": "♪",
        "en-b-asr-en": "",
        "en-b-st-fr": "",
        "en-c-asr-en": "Yes.",
    }
    kept, _ = filter_data_dir(data, tmp_path / "all", min_text_length=0)
    assert kept == 3
    make_examples([data], tmp_path / "train", ["asr:en"])
    assert list(read_table(tmp_path / "train" / "text")) == ["en-c-asr-en"]


def test_byte_order_marks_of_tables_are_skipped(data):
    for path in data.iterdir():
        content = path.read_bytes()
        path.write_bytes(b"\xef\xbb\xbf" + content)
    assert validate_data_dir(data, check_files=False) == []
    assert list(read_table(data / "text")) == ["en-a", "en-a-b", "en-c", "fr-a"]


@pytest.mark.parametrize(
    ("table", "line", "message"),
    [
        ("utt2num_samples", "en-a 1.5", "utt2num_samples: '1.5' of en-a is not a num"),
        ("utt2num_samples", "en-a", "utt2num_samples: '' of en-a is not a number"),
        ("utt2lang", "en-a english", "utt2lang: en-a: 'english' is not a language"),
        ("utt2lang", "en-a", "utt2lang: en-a: '' is not a language code"),
        ("utt2spk", "", "en-a is not in .*utt2spk"),
    ],
)
def test_a_damaged_line_is_named(data, tmp_path, table, line, message):
    lines = [row for row in (data / table).read_text().splitlines() if row]
    lines[0] = line
    (data / table).write_text("".join(f"{row}\n" for row in lines if row))
    with pytest.raises(UserError, match=message):
        make_examples([data], tmp_path / "new", ["asr:en"])


def test_an_utterance_without_a_language_is_listed(data, tmp_path):
    lines = (data / "utt2lang").read_text().splitlines()
    (data / "utt2lang").write_text("".join(f"{row}\n" for row in lines[1:]))
    _, dropped = make_examples([data], tmp_path / "new", ["asr:en"])
    assert ("en-a", "not in utt2lang") in [(d.id, d.reason) for d in dropped]


def test_no_task_is_an_error(data, tmp_path):
    with pytest.raises(UserError, match="no task"):
        main(["--input", str(data), "--tasks", " ", "--output", str(tmp_path / "new")])
