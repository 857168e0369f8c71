"""Data dirs: validation and all operations."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechllm.bin.data_dir import main
from speechllm.data.data_dir import (
    combine_data_dirs,
    filter_data_dir,
    perturb_speed,
    split_table,
    subset_data_dir,
    write_data_dir,
)
from speechllm.data.kaldi_table import (
    Dropped,
    read_dropped,
    read_table,
    write_dropped,
    write_table,
)
from speechllm.data.statistics import statistics
from speechllm.data.validation import check_data_dir, validate_data_dir
from speechllm.utils.errors import UserError


@pytest.fixture
def data(tmp_path):
    """Write a small valid data dir: two speakers, two languages, three utterances."""
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.wav").touch()
    tables = {
        "wav.scp": {
            f"{utt}": f"{tmp_path}/{utt[-1]}.wav" for utt in ("s1-a", "s1-b", "s2-c")
        },
        "utt2spk": {"s1-a": "s1", "s1-b": "s1", "s2-c": "s2"},
        "utt2lang": {"s1-a": "en", "s1-b": "en", "s2-c": "fr"},
        "utt2dur": {"s1-a": "1.5", "s1-b": "20", "s2-c": "3"},
        "text": {"s1-a": "Hello you.", "s1-b": "Good bye.", "s2-c": "Bonjour, ça va ?"},
        "text.fr": {"s1-a": "Salut toi."},
    }
    write_data_dir(tmp_path / "data", tables)
    return tmp_path / "data"


def replace(path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def lines(path) -> list[str]:
    return path.read_text().splitlines()


def test_valid_data_dir_has_no_problems(data):
    assert validate_data_dir(data) == []
    check_data_dir(data)
    assert lines(data / "spk2utt") == ["s1 s1-a s1-b", "s2 s2-c"]


@pytest.mark.parametrize(
    ("table", "old", "new", "problem"),
    [
        (
            "wav.scp",
            "/b.wav",
            "/none.wav",
            r"wav.scp:2: the file of s1-b does not exist",
        ),
        ("wav.scp", "s1-b ", "s1-b\n#", r"wav.scp:2: recording s1-b has no file"),
        ("wav.scp", "b.wav", "b.wav |", r"wav.scp:2: recording s1-b is a command"),
        (
            "text",
            "s1-b Good bye.\n",
            "",
            r"utt2spk:2: utterance s1-b has no line in text",
        ),
        ("text", "s1-b", "s1-bb", r"text:2: utterance s1-bb is not in utt2spk"),
        ("text", "s1-b", "s1-a", r"text:2: s1-a is repeated; ids must be unique"),
        ("text", "s2-c", "s0-c", r"text:3: s0-c comes after s1-b; sort .*LC_ALL=C"),
        ("text", "s1-b Good", "\ns1-b Good", r"text:2: the line is empty"),
        ("text.fr", "s1-a", "s1-x", r"text.fr:1: utterance s1-x is not in utt2spk"),
        ("utt2spk", "s2-c s2", "s2-c s0", r"utt2spk:3: speaker s0 comes after s1"),
        ("utt2spk", "s2-c s2", "s2-c", r"utt2spk:3: .*needs exactly one speaker"),
        ("spk2utt", "s1-a ", "", r"spk2utt:1: speaker s1 has 1 utterances here and 2"),
        ("spk2utt", "s1-b", "s2-c", r"spk2utt:1: speaker s1 has other utterances here"),
        ("spk2utt", "s1-b", "s1-a", r"spk2utt:1: speaker s1 has other utterances here"),
        ("spk2utt", "s2 s2-c", "s3 s2-c", r"spk2utt:2: speaker s3 is not in utt2spk"),
        ("spk2utt", "s2 s2-c", "s2 s2-c\ns3", r"spk2utt:3: speaker s3 is not in"),
        ("spk2utt", "s2 s2-c\n", "", r"spk2utt: speaker s2 of utt2spk is missing"),
        ("utt2dur", "s2-c 3", "s2-c inf", r"utt2dur:3: 'inf' is not a duration"),
        (
            "utt2lang",
            "s2-c fr",
            "s2-c French",
            r"utt2lang:3: 'French' is not a language",
        ),
        ("utt2dur", "s1-b 20", "s1-b -2", r"utt2dur:2: '-2' is not a duration .*s1-b"),
        ("utt2dur", "s2-c 3", "s2-c 3 s", r"utt2dur:3: '3 s' is not a duration"),
    ],
)
def test_message_of_a_defect_has_file_and_line(data, table, old, new, problem):
    replace(data / table, old, new)
    problems = validate_data_dir(data)
    assert len(problems) >= 1
    with pytest.raises(UserError, match=problem):
        raise UserError("\n".join(problems))


def test_ids_of_audio_and_text_must_match(data):
    replace(data / "wav.scp", "s2-c", "s2-cc")
    problems = "\n".join(validate_data_dir(data, check_files=False))
    assert "utt2spk:3: utterance s2-c has no line in wav.scp" in problems
    assert "wav.scp:3: utterance s2-cc is not in utt2spk" in problems


def test_text_must_be_utf8(data):
    content = (data / "text").read_bytes()
    (data / "text").write_bytes(content.replace("ç".encode(), "ç".encode("latin-1")))
    with pytest.raises(UserError, match=r"text:3: not UTF-8 \(byte 0xe7\).*iconv"):
        check_data_dir(data)


def test_missing_tables_and_folders_are_named(data, tmp_path):
    (data / "utt2lang").unlink()
    with pytest.raises(UserError, match="utt2lang: the table is missing"):
        check_data_dir(data)
    with pytest.raises(UserError, match="the data dir does not exist"):
        check_data_dir(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("segments", "problem"),
    [
        ("r 0 1", "recording r of s1-a is not in wav.scp"),
        ("rec 1 1", "s1-a lasts from 1 to 1 s"),
        ("rec 0 nan", "s1-a lasts from 0 to nan s"),
        ("rec 0 inf", "s1-a lasts from 0 to inf s"),
        ("rec -1 1", "s1-a lasts from -1 to 1 s"),
        ("rec 0 1_0", "expected <recording> <start> <end>"),
        ("rec 0 １", "expected <recording> <start> <end>"),
        ("rec 0", "expected <recording> <start> <end>"),
    ],
)
def test_segments_are_checked(data, tmp_path, segments, problem):
    (data / "wav.scp").write_text(f"rec {tmp_path}/a.wav\n")
    table = {"s1-a": "rec 0 1", "s1-b": "rec 1 2.5", "s2-c": "rec 0.5 3"}
    write_table(data / "segments", table)
    assert validate_data_dir(data) == []
    write_table(data / "segments", table | {"s1-a": segments})
    assert any(problem in found for found in validate_data_dir(data))


@pytest.mark.parametrize("samples", ["-5", "0", "1e3", "1.5", "x", "1_000", "５", ""])
def test_number_of_samples_is_checked(data, samples):
    write_table(data / "utt2num_samples", dict.fromkeys(read_table(data / "text"), "9"))
    assert validate_data_dir(data) == []
    replace(data / "utt2num_samples", "s1-b 9", f"s1-b {samples}".rstrip())
    (problem,) = validate_data_dir(data)
    assert f"utt2num_samples:2: {samples!r} is not a number of samples" in problem


def test_number_of_listed_problems_is_limited(data):
    write_table(data / "text", {f"x{number:03}": "a" for number in range(100)})
    assert len(validate_data_dir(data)) < 30


def test_filter_lists_dropped_utterances_with_reasons(data):
    replace(data / "text", "s2-c Bonjour, ça va ?", "s2-c")
    target = data.parent / "filtered"
    kept, dropped = filter_data_dir(data, target, 1, 15)
    assert kept == 1
    assert lines(target / "dropped.tsv") == [
        "s1-b\tfilter\ttoo long\t20.00 s > 15 s",
        "s2-c\tfilter\tempty text\t",
    ]
    assert read_dropped(target) == dropped
    assert validate_data_dir(target) == []
    for name in ("wav.scp", "text", "text.fr", "utt2dur", "utt2lang", "utt2spk"):
        assert [line.split()[0] for line in lines(target / name)] == ["s1-a"]
    assert lines(target / "spk2utt") == ["s1 s1-a"]


def test_filter_by_text_length_and_minimum_duration(data):
    target = data.parent / "filtered"
    _, dropped = filter_data_dir(data, target, min_seconds=2, min_text_length=10)
    assert {entry.id: entry.reason for entry in dropped} == {
        "s1-a": "too short",
        "s1-b": "text too short",
    }
    _, dropped = filter_data_dir(data, target, max_text_length=15)
    assert [(entry.id, entry.detail) for entry in dropped] == [("s2-c", "16 > 15")]


def test_filter_without_result_is_an_error(data):
    with pytest.raises(UserError, match="no utterance passes the filter"):
        filter_data_dir(data, data.parent / "filtered", min_seconds=100)


def test_filter_in_place_keeps_earlier_dropped_entries(data):
    filter_data_dir(data, data, max_seconds=15)
    filter_data_dir(data, data, min_seconds=2)
    assert [entry.id for entry in read_dropped(data)] == ["s1-a", "s1-b"]
    assert validate_data_dir(data) == []


def test_speed_perturbation(data):
    target = data.parent / "speeds"
    write_dropped(data, [Dropped("s3-d", "filter", "too long")])
    perturb_speed(data, target, [0.9, 1.0, 1.1])
    assert validate_data_dir(target) == []
    # the share of dropped utterances does not change
    dropped = [entry.id for entry in read_dropped(target)]
    assert dropped == ["s3-d", "sp0.9-s3-d", "sp1.1-s3-d"]
    text = read_table(target / "text")
    assert len(text) == 9
    assert text["sp0.9-s1-a"] == text["s1-a"] == "Hello you."
    assert read_table(target / "utt2spk")["sp1.1-s2-c"] == "sp1.1-s2"
    assert read_table(target / "utt2dur")["sp0.9-s1-a"] == "1.667"
    speeds = read_table(target / "utt2speed")
    assert (speeds["s1-b"], speeds["sp0.9-s1-b"]) == ("1", "0.9")
    assert read_table(target / "text.fr").keys() == {
        "s1-a",
        "sp0.9-s1-a",
        "sp1.1-s1-a",
    }
    with pytest.raises(UserError, match="perturbed already"):
        perturb_speed(target, data.parent / "again", [0.9])


def test_combine(data):
    other, both = data.parent / "other", data.parent / "both"
    perturb_speed(data, other, [0.9])
    (other / "utt2speed").unlink()
    assert combine_data_dirs([other, data], both) == 6
    assert validate_data_dir(both) == []
    with pytest.raises(UserError, match="s1-a is in two of the data dirs"):
        combine_data_dirs([data, data], data.parent / "twice")
    assert not (data.parent / "twice").exists()
    (other / "utt2dur").unlink()
    with pytest.raises(UserError, match="other: has no utt2dur"):
        combine_data_dirs([data, other], both)


def test_subset(data):
    target = data.parent / "subset"
    assert subset_data_dir(data, target, count=2, seed=1) == 2
    assert validate_data_dir(target) == []
    first = lines(target / "text")
    subset_data_dir(data, target, count=2, seed=1)
    assert lines(target / "text") == first
    assert subset_data_dir(data, target, ids=["s2-c"]) == 1
    with pytest.raises(UserError, match="cannot take 4 of 3"):
        subset_data_dir(data, target, count=4)
    with pytest.raises(UserError, match="has no utterance s9"):
        subset_data_dir(data, target, ids=["s9"])


@given(st.integers(1, 60), st.integers(0, 9))
@settings(max_examples=20)
def test_parts_of_a_table_concatenate_to_the_table(tmp_path_factory, entries, parts):
    folder = tmp_path_factory.mktemp("split")
    write_table(folder / "t", {f"{n:03}": str(n) for n in range(entries)})
    outputs = [folder / f"t.{part}" for part in range(parts)]
    if not 0 < parts <= entries:
        with pytest.raises(UserError, match="cannot split"):
            split_table(folder / "t", outputs)
        return
    sizes = split_table(folder / "t", outputs)
    assert max(sizes) - min(sizes) <= 1
    joined = "".join(output.read_text() for output in outputs)
    assert joined == (folder / "t").read_text()


def test_statistics(data):
    rows = {row["language"]: row for row in statistics(data)}
    assert rows["en"]["utterances"] == 2
    assert rows["en"]["minutes"] == pytest.approx(21.5 / 60)
    assert (rows["*"]["utterances"], rows["*"]["speakers"]) == (3, 2)


ids = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=8)
values = st.text(st.characters(exclude_categories=["Zl", "Zp", "C"])).map(str.strip)


@given(st.dictionaries(ids, values))
def test_written_table_is_read_back(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("table") / "t"
    write_table(path, table)
    assert read_table(path) == table
    assert list(read_table(path)) == sorted(table, key=str.encode)


@pytest.mark.parametrize(("key", "value"), [("a b", "x"), ("", "x"), ("a", "x\ny")])
def test_invalid_entries_are_rejected(tmp_path, key, value):
    with pytest.raises(UserError):
        write_table(tmp_path / "t", {key: value})
    assert list(tmp_path.iterdir()) == []


def test_command_line(data, capsys):
    main(["validate", "--input", str(data)])
    assert capsys.readouterr().out == f"{data}: valid\n"
    replace(data / "text", "s1-b", "s1-a")
    with pytest.raises(UserError, match="1 problems"):
        main(["validate", "--input", str(data)])
    assert "text:2: s1-a is repeated" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("spk2utt", "s1 s1-a s1-b", "s1 s1-a s2-c", "spk2utt:1: .*other utterances"),
        ("utt2dur", "1.5", "1e999", "utt2dur:1: '1e999' is not a duration"),
        ("utt2dur", "1.5", "0.0", "utt2dur:1: '0.0' is not a duration"),
    ],
)
def test_contradictions_that_kaldi_refuses(data, table, old, new, message):
    replace(data / table, old, new)
    with pytest.raises(UserError, match=message):
        check_data_dir(data)


@pytest.mark.parametrize("samples", ["-5", "0", "1.5", "nan", "many", ""])
def test_nonsense_numbers_of_samples_are_named(data, samples):
    content = f"s1-a {samples}\ns1-b 16000\ns2-c 16000\n"
    (data / "utt2num_samples").write_text(content)
    with pytest.raises(
        UserError, match="utt2num_samples:1: .* not a number of samples"
    ):
        check_data_dir(data)


@pytest.mark.parametrize("end", ["inf", "nan"])
def test_segments_end_at_a_number(data, end):
    wav = (data / "wav.scp").read_text().split()[1]
    (data / "wav.scp").write_text(f"r {wav}\n")
    segments = f"s1-a r 0 {end}\ns1-b r 0 1\ns2-c r 0 1\n"
    (data / "segments").write_text(segments)
    with pytest.raises(UserError, match=f"segments:1: .* from 0 to {end} s"):
        check_data_dir(data)


def test_limits_and_speed_factors_are_finite_numbers(data, tmp_path):
    with pytest.raises(UserError, match="filter: max_seconds nan: expected a finite"):
        filter_data_dir(data, tmp_path / "new", max_seconds=float("nan"))
    for factor in ("inf", "nan", "0", "-1"):
        with pytest.raises(UserError, match="from 0.1 to 10"):
            perturb_speed(data, tmp_path / "new", [1.0, float(factor)])
    assert not (tmp_path / "new").exists()


COMMANDS = {
    "filter": lambda data, new: filter_data_dir(data, new),
    "subset": lambda data, new: subset_data_dir(data, new, ids=["s1-a"]),
    "perturb": lambda data, new: perturb_speed(data, new, [0.9, 1]),
    "combine": lambda data, new: combine_data_dirs([data], new),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("table", ["utt2spk", "text", "utt2lang", "wav.scp"])
def test_tables_with_different_utterances_are_refused(data, tmp_path, command, table):
    """An utterance that a table lacks must not be lost without a message."""
    (data / table).write_text("".join(f"{line}\n" for line in lines(data / table)[1:]))
    with pytest.raises(UserError, match=f"{data}"):
        COMMANDS[command](data, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_an_utterance_without_a_speaker_is_refused(data, tmp_path, command):
    replace(data / "utt2spk", "s1-a s1", "s1-a")
    message = f"{data}/utt2spk: utterance (sp0.9-)?s1-a needs exactly one speaker"
    with pytest.raises(UserError, match=message):
        COMMANDS[command](data, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("command", [*COMMANDS, "statistics"])
def test_a_missing_utt2spk_is_named(data, tmp_path, command):
    (data / "utt2spk").unlink()
    run = {**COMMANDS, "statistics": lambda data, new: statistics(data)}[command]
    with pytest.raises(UserError, match=f"{data}/utt2spk: the table does not exist"):
        run(data, tmp_path / "new")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "1e400", "x", "1 2"])
@pytest.mark.parametrize("table", ["utt2dur", "utt2num_samples"])
def test_durations_are_numbers(data, value, table):
    write_table(data / table, {"s1-a": "9", "s1-b": value, "s2-c": "9"})
    for run in (statistics, lambda data: filter_data_dir(data, data)):
        with pytest.raises(UserError, match=f"{data}/{table}: '{value}' of s1-b"):
            run(data)
