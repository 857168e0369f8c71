"""A user's own data: readers of all formats, sets, ids, warnings."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from speechllm.bin.prepare_data import main
from speechllm.corpora.own_data.checks import (
    Utterance,
    case_of,
    check_utterances,
    foreign_letters,
)
from speechllm.corpora.own_data.items import ReadOptions, file_version, set_of_file
from speechllm.corpora.own_data.manifest import read_manifest
from speechllm.corpora.own_data.sets import make_ids
from speechllm.corpora.own_data.source import (
    apply_alignments,
    measure,
    read_source,
)
from speechllm.corpora.own_data.splits import Member, split_members
from speechllm.data.kaldi_table import read_dropped, read_table
from speechllm.data.validation import validate_data_dir
from speechllm.utils.errors import UserError

WORDS = "one small red bird sings high above our old green wooden garden gate".split()
OPTIONS = ReadOptions()


def sentence(number: int) -> str:
    return " ".join(WORDS[(number * k + k * k) % len(WORDS)] for k in range(1, 6))


def write_wav(path: Path, seconds: float = 1.0, rate: int = 16000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).standard_normal(round(seconds * rate))
    soundfile.write(path, 0.1 * noise, rate)
    return path


def write_folder(root: Path, number: int = 12) -> Path:
    for n in range(number):
        write_wav(root / f"s{n % 4}-{n:02d}.wav", 2.0)
        (root / f"s{n % 4}-{n:02d}.txt").write_text(f"{sentence(n)} {n} times\n")
    return root


def prepare(data: Path, output: Path, *options: str) -> str:
    main(["own_data", "--data", str(data), "--output", str(output), *options])
    for name in ("train", "dev", "test"):
        assert validate_data_dir(output / name) == []
    return (output / "REPORT.md").read_text("utf-8")


def texts(output: Path, table: str = "text") -> dict[str, dict[str, str]]:
    return {n: read_table(output / n / table) for n in ("train", "dev", "test")}


# ---------------------------------------------------------------- folders


def test_a_folder_of_audio_and_texts(tmp_path, capsys):
    data = write_folder(tmp_path / "my data")
    (data / "s0-00.txt").write_text("the first one of all", encoding="utf-8-sig")
    write_wav(data / "s1-no text.wav")
    (data / "s1-bad.wav").write_bytes(b"no audio")
    (data / "s1-bad.txt").write_text("bad")
    report = prepare(data, tmp_path / "out", "--speaker_from", "name")
    found = texts(tmp_path / "out")
    assert sum(map(len, found.values())) == 12
    expected = {f"s{n % 4}-{n:02d}": f"{sentence(n)} {n} times" for n in range(12)}
    expected["s0-00"] = "the first one of all"
    assert found["train"] | found["dev"] | found["test"] == expected
    speakers = {
        name: set(table.values())
        for name, table in texts(tmp_path / "out", "utt2spk").items()
    }
    assert speakers["train"] | speakers["dev"] | speakers["test"] == {
        "s0",
        "s1",
        "s2",
        "s3",
    }
    assert sum(map(len, speakers.values())) == 4  # each in one set
    dropped = {(d.id, d.reason) for d in read_dropped(tmp_path / "out" / "train")}
    assert dropped == {
        ("s1-no text.wav", "no text file"),
        ("s1-bad", "unreadable audio"),
    }
    assert "no speaker is in two sets" in report
    assert "warning: byte-order mark: 1 utterance: " in report
    assert "warning: too little speech: 0." in report
    rows = (tmp_path / "out" / "warnings.tsv").read_text().splitlines()
    assert any(row.startswith("byte-order mark\ts0-") for row in rows)
    assert report in capsys.readouterr().out


def test_a_second_run_gives_the_same_and_other_data_is_refused(tmp_path):
    data = write_folder(tmp_path / "one")
    prepare(data, tmp_path / "out")
    before = texts(tmp_path / "out")
    prepare(data, tmp_path / "out")
    assert texts(tmp_path / "out") == before
    other = write_folder(tmp_path / "two")
    with pytest.raises(
        UserError, match=r"has the data of .*one; give another --data_name"
    ):
        prepare(other, tmp_path / "out")


def test_subtitles_are_cut_by_their_times(tmp_path):
    data = tmp_path / "films"
    for film in range(4):
        write_wav(data / f"film {film}.wav", 40.0)
        for language in ("en", "de"):
            cues = [
                f"{n + 1}\n00:00:{4 * n:02d},250 --> 00:00:{4 * n + 3:02d},000\n"
                f"{language} {sentence(film * 10 + n)}\n"
                for n in range(9)
            ]
            name = f"film {film}.srt" if language == "en" else f"film {film}.de.srt"
            (data / name).write_text("\n".join(cues))
    path = data / "film 0.srt"
    path.write_text(path.read_text().replace(f"en {sentence(2)}", "[door slams]"))
    late = "\n10\n00:00:50,000 --> 00:00:52,000\nafter the end\n"
    path.write_text(path.read_text() + late)
    prepare(data, tmp_path / "out", "--tgt_lang", "de")
    segments = texts(tmp_path / "out", "segments")
    merged = {k: v for table in segments.values() for k, v in table.items()}
    assert len(merged) == 4 * 9 - 1
    key = next(k for k in merged if k.endswith("-film_1_00003"))
    assert merged[key].split()[1:] == ["8.250", "11.000"]
    found = {k: v for t in texts(tmp_path / "out").values() for k, v in t.items()}
    assert found[key] == f"en {sentence(12)}"
    german = {
        k: v for t in texts(tmp_path / "out", "text.de").values() for k, v in t.items()
    }
    assert german[key] == f"de {sentence(12)}"
    recordings = [set(read_table(tmp_path / "out" / n / "wav.scp")) for n in segments]
    assert sum(map(len, recordings)) == len(set.union(*recordings)) == 4
    reasons = {d.reason for d in read_dropped(tmp_path / "out" / "train")}
    assert reasons == {"subtitle without speech", "segment outside of the audio"}


def test_a_long_recording_needs_times(tmp_path):
    data = write_folder(tmp_path / "d")
    write_wav(data / "talk.wav", 95.0)
    (data / "talk.txt").write_text("a long talk")
    with pytest.raises(UserError) as error:
        prepare(data, tmp_path / "out")
    assert re.search(r"talk\.wav: 95 s with one transcript", str(error.value))
    assert ".srt or .vtt" in str(error.value)
    assert "--align_model MODEL_DIR" in str(error.value)
    assert not (tmp_path / "out" / "train").exists()
    # as aligned by speechllm.bin.align_recordings
    segments = [
        {"start": 1.5, "end": 4.0, "text": "a long", "ctc_error": 0.1},
        {"start": 5.0, "end": 8.25, "text": "talk", "ctc_error": 0.9},
    ]
    row = {"audio": str(data / "talk.wav"), "text": "a long talk", "segments": segments}
    path = tmp_path / "alignments.jsonl"
    path.write_text('{"model": "m"}\n' + json.dumps(row) + "\n")
    report = prepare(data, tmp_path / "out", "--alignments", str(path))
    merged = {k: v for t in texts(tmp_path / "out").values() for k, v in t.items()}
    assert {"a long", "talk"} <= set(merged.values())
    assert "text does not fit the audio by CTC: 1 utterance:" in report
    # a later row, or another version of the file, makes the row void
    row["file"] = file_version(row["audio"])
    later = {key: row[key] for key in ("audio", "text", "file")}
    later |= {"start": None, "end": None, "ctc_error": 0.2}
    for rows, kept in (([row], 2), ([row, later], 0), ([later, row], 2)):
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
        source = read_source(data, OPTIONS)
        source.items = measure(source)
        apply_alignments(source, path)
        assert (
            sum(
                "talk.wav" in item.audio and item.start is not None
                for item in source.items
            )
            == kept
        )
    write_wav(data / "talk.wav", 90.0)
    apply_alignments(source := read_source(data, OPTIONS), path)
    assert all(item.start is None for item in source.items)


def test_a_few_long_utterances_are_left_out_and_listed(tmp_path):
    data = write_folder(tmp_path / "d", 40)
    write_wav(data / "x.wav", 3.5)
    (data / "x.txt").write_text("too long a sentence")
    report = prepare(data, tmp_path / "out", "--max_seconds", "3")
    assert "warning: too long: 1 utterance: left out" in report
    warnings = (tmp_path / "out" / "warnings.tsv").read_text()
    assert "too long\tx\t3.5 s > 3 s" in warnings


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "neither audio files nor a manifest"),
        ({"a.wav": None}, "no transcript next to any of 1 audio files"),
        (
            {"a.wav": None, "a.txt": ""},
            "no usable utterance; left out: 1, first a: empty",
        ),
        ({"a.wav": None, "a.txt": "x"}, "too few different utterances"),
        ({"a.csv": "x,y\n1,2\n"}, "no column of the audio was recognised"),
        ({"a.csv": "path,text\n"}, "the manifest has no rows"),
        ({"a.csv": "path,text\nq.wav,hi\n"}, "first q.wav: no audio file"),
        ({"a.csv": "path,path,text\n1,2,3\n"}, "the column 'path' is listed twice"),
        ({"a.csv": "p", "b.csv": "q"}, r"several manifests \(a.csv, b.csv\)"),
        ({"train.csv": "p", "train.tsv": "q"}, "several manifests of train"),
    ],
)
def test_inputs_that_are_refused(tmp_path, files, message):
    data = tmp_path / "d"
    data.mkdir()
    for name, content in files.items():
        if content is None:
            write_wav(data / name)
        else:
            (data / name).write_text(content)
    with pytest.raises(UserError, match=message):
        prepare(data, tmp_path / "out")
    assert not (tmp_path / "out" / "train").exists()


# ---------------------------------------------------------------- manifests

FIELD = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(FIELD, FIELD), min_size=1, max_size=5),
    delimiter=st.sampled_from(",;|"),
    end=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
)
def test_csv_as_pythons_writer_writes_it(tmp_path_factory, rows, delimiter, end, bom):
    folder = tmp_path_factory.getbasetemp() / "csv"
    folder.mkdir(exist_ok=True)
    if not (folder / "a.wav").exists():
        write_wav(folder / "a.wav")
    path = folder / "m.csv"
    with open(
        path, "w", encoding="utf-8-sig" if bom else "utf-8", newline=""
    ) as stream:
        writer = csv.writer(stream, delimiter=delimiter, lineterminator=end)
        writer.writerow(["Path", "Sentence", "speaker"])
        writer.writerows(("a.wav", text, speaker) for text, speaker in rows)
    found = read_manifest(path, OPTIONS)

    def plain(text: str) -> str:
        return text.replace("\r\n", "\n").replace("\r", " ").strip(" \t\n")

    assert [(i.text, i.speaker) for i in found.items] == [
        (plain(text), plain(speaker)) for text, speaker in rows
    ]
    assert found.dropped == []


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(FIELD, st.floats(0.0, 5.0), st.floats(0.1, 9.0)), min_size=1
    )
)
def test_jsonl_as_pythons_writer_writes_it(tmp_path_factory, rows):
    folder = tmp_path_factory.getbasetemp() / "jsonl"
    folder.mkdir(exist_ok=True)
    if not (folder / "a.wav").exists():
        write_wav(folder / "a.wav")
    path = folder / "manifest.json"  # NeMo's name for JSON lines
    with open(path, "w", encoding="utf-8") as stream:
        for text, offset, duration in rows:
            row = {"audio_filepath": "a.wav", "text": text}
            row |= {"offset": offset, "duration": duration}
            stream.write(json.dumps(row) + "\n")
    found = read_manifest(path, OPTIONS)
    assert [(i.text, i.start, i.end) for i in found.items] == [
        (text.strip(" \t\r\n"), offset, offset + duration)
        for text, offset, duration in rows
    ]


def common_voice(root: Path) -> None:
    head = "client_id\tpath\tsentence_id\tsentence\tup_votes\tlocale\n"
    for name, first in (("train", 0), ("dev", 3), ("test", 6), ("validated", 0)):
        rows = [
            f'{"ab" * 9}{n}\tc{n}.mp3\t1\t"{n}" {sentence(n)}\t2\ten\n'
            for n in range(first, first + 3)
        ]
        (root / f"{name}.tsv").write_text(head + "".join(rows))
    for n in range(9):
        path = write_wav(root / "clips" / f"c{n}.wav")
        path.rename(path.with_suffix(".mp3"))


def nemo(root: Path) -> None:
    for name, first in (("train", 0), ("validation", 3), ("test", 6)):
        rows = [
            {
                "audio_filepath": f"wavs/{n}.wav",
                "text": sentence(n),
                "duration": 1.0,
                "lang": "en",
            }
            for n in range(first, first + 3)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (root / f"{name}_manifest.json").write_text(lines)
    for n in range(9):
        write_wav(root / "wavs" / f"{n}.wav")


def audiofolder(root: Path) -> None:
    for name, first in (("train", 0), ("validation", 3), ("test", 6)):
        rows = [f"{n}.wav,{sentence(n)}\n" for n in range(first, first + 3)]
        for n in range(first, first + 3):
            write_wav(root / name / f"{n}.wav")
        (root / name / "metadata.csv").write_text(
            "file_name,transcription\n" + "".join(rows)
        )


def whisper_guide(root: Path) -> None:
    rows = [
        {"audio": {"path": f"{n}.wav"}, "sentence": sentence(n), "split": name}
        for n, name in enumerate(["train"] * 3 + ["valid"] * 3 + ["test"] * 3)
    ]
    for n in range(9):
        write_wav(root / f"{n}.wav")
    (root / "data.json").write_text(json.dumps(rows))


def kaldi(root: Path) -> None:
    for name, first in (("train", 0), ("dev", 3), ("test", 6)):
        folder = root / name
        folder.mkdir()
        ids = [f"spk{n}-u{n}" for n in range(first, first + 3)]
        for n, key in enumerate(ids, first):
            write_wav(root / "wav" / f"{key}.wav")
            for table, value in (
                ("wav.scp", f"wav/{key}.wav"),
                ("text", sentence(n)),
                ("utt2spk", f"spk{n}"),
            ):
                with open(folder / table, "a") as stream:
                    stream.write(f"{key} {value}\n")


def cut_set(root: Path) -> None:
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

    for name, first in (("train", 0), ("dev", 3), ("test", 6)):
        cuts = []
        for n in range(first, first + 3):
            path = write_wav(root / "audio" / f"{n}.wav", 3.0)
            recording = Recording.from_file(path)
            own = SupervisionSegment(
                f"s{n}", recording.id, 0.5, 2.0, text=sentence(n), speaker=f"spk{n}",
                language="English",
            )  # fmt: skip
            cuts.append(
                MonoCut(f"c{n}", 0.25, 2.75, 0, supervisions=[own], recording=recording)
            )
        CutSet.from_cuts(cuts).to_file(root / f"cuts_{name}.jsonl.gz")


@pytest.mark.parametrize(
    "write", [common_voice, nemo, audiofolder, whisper_guide, kaldi, cut_set]
)
def test_formats_with_given_sets(tmp_path, write):
    data = tmp_path / "data"
    data.mkdir()
    write(data)
    report = prepare(data, tmp_path / "out")
    found = texts(tmp_path / "out")
    quoted = write is common_voice
    for first, name in ((0, "train"), (3, "dev"), (6, "test")):
        expected = {
            f'"{n}" {sentence(n)}' if quoted else sentence(n)
            for n in range(first, first + 3)
        }
        assert set(found[name].values()) == expected
    assert "sets as given" in report
    if write is common_voice:
        assert "train.tsv: audio = path, text = sentence, speaker = client_id" in report
    if write is cut_set:
        values = read_table(tmp_path / "out" / "train" / "segments").values()
        assert {tuple(value.split()[1:]) for value in values} == {("0.750", "2.750")}


def test_cuts_whose_audio_is_not_that_of_the_file(tmp_path):
    """Copies at another speed, and one channel of two, as icefall makes them."""
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

    write_folder(tmp_path / "mono", 9)
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.zeros((32000, 2)), 16000)
    cuts = []
    for file in [*sorted((tmp_path / "mono").glob("*.wav")), path]:
        recording = Recording.from_file(file)
        own = SupervisionSegment(
            f"s-{file.stem}", recording.id, 0.5, 1.0, recording.num_channels - 1,
            text=f"spoken in {file.stem}",
        )  # fmt: skip
        cuts.append(
            MonoCut(f"c-{file.stem}", 0.5, 1.0, own.channel, [own.with_offset(-0.5)],
                    recording=recording)
        )  # fmt: skip
    mono = CutSet.from_cuts(cuts[:-1])
    copies = mono + mono.perturb_speed(0.9) + mono.perturb_tempo(1.1)
    (copies + CutSet.from_cuts(cuts[-1:])).to_file(tmp_path / "cuts.jsonl.gz")
    report = prepare(tmp_path / "cuts.jsonl.gz", tmp_path / "out")
    assert "18 copy at another speed, 1 one channel of several" in report
    times = [
        tuple(value.split()[1:])
        for name in ("train", "dev", "test")
        for value in read_table(tmp_path / "out" / name / "segments").values()
    ]
    assert times == [("0.500", "1.500")] * 9
    dropped = {d.reason: d.detail for d in read_dropped(tmp_path / "out" / "train")}
    assert re.search(r"stereo\.wav: channel 1 of 2", dropped["one channel of several"])


def test_kaldis_end_of_a_recording(tmp_path):
    kaldi(tmp_path)
    for name in ("train", "dev", "test"):
        ids = read_table(tmp_path / name / "wav.scp")
        rows = "".join(f"{key} {key} 0.25 -1\n" for key in ids)
        (tmp_path / name / "segments").write_text(rows)
    prepare(tmp_path, tmp_path / "out")
    values = read_table(tmp_path / "out" / "test" / "segments").values()
    assert {tuple(value.split()[1:]) for value in values} == {("0.250", "1.000")}


def test_columns_are_overridden_and_bad_rows_are_listed(tmp_path):
    data = tmp_path / "d"
    rows = ["Audio File,text,corrected text,who"]
    for n in range(12):
        write_wav(data / "deep" / f"{n}.wav")
        rows.append(f"{n}.wav,wrong,{sentence(n)} {n},{'ABC'[n % 3]}")
    rows += ["1.wav,too,many,fields,here", "missing.wav,a,b,A", "2.wav,x,,A"]
    (data / "list.csv").write_text("\n".join(rows) + "\n", encoding="utf-8-sig")
    options = ["--audio_column", "Audio File", "--text_column", "corrected text"]
    options += ["--speaker_column", "who", "--audio_dir", str(data / "deep")]
    report = prepare(data / "list.csv", tmp_path / "out", *options)
    merged = {k: v for t in texts(tmp_path / "out").values() for k, v in t.items()}
    assert set(merged.values()) == {f"{sentence(n)} {n}" for n in range(12)}
    assert {key.partition("-")[0] for key in merged} == {"A", "B", "C"}
    assert "begins with a byte-order mark" in report
    dropped = {(d.id, d.reason) for d in read_dropped(tmp_path / "out" / "train")}
    assert dropped == {
        ("list.csv:14", "bad row"),
        ("missing.wav", "no audio file"),
        ("2", "empty text"),
    }
    with pytest.raises(
        UserError, match="no column 'whom' .--speaker_column.; there are"
    ):
        read_source(data / "list.csv", ReadOptions(columns={"speaker": "whom"}))


def test_another_language_is_named(tmp_path):
    data = tmp_path / "d"
    data.mkdir()
    common_voice(data)
    with pytest.raises(UserError, match="--lang de: the data is in en; give --lang en"):
        prepare(data, tmp_path / "out", "--lang", "de")


def test_names_of_set_files():
    names = ["train.tsv", "dev_manifest.json", "cuts-test.jsonl.gz", "VALID.csv"]
    assert [set_of_file(Path(n)) for n in names] == ["train", "dev", "test", "dev"]
    assert set_of_file(Path("validation/metadata.csv")) == "dev"
    assert set_of_file(Path("training_notes.csv")) == set_of_file(Path("x.csv")) == ""


# ---------------------------------------------------------------- sets and ids

MEMBERS = st.lists(
    st.builds(
        Member,
        split=st.just(""),
        speaker=st.sampled_from(["", *"abcdefgh"]),
        recording=st.sampled_from(["", "r1", "r2", "r3"]),
        text=st.sampled_from(WORDS),
        seconds=st.floats(0.5, 20.0),
    ),
    min_size=3,
    max_size=60,
)


@given(MEMBERS)
def test_sets_share_no_group_and_do_not_depend_on_the_order(members):
    try:
        sets, rule = split_members(members, None, None)
    except ValueError:
        assert len({m.text for m in members}) < 12
        return
    assert {"train", "dev", "test"} == set(sets)
    again, _ = split_members(members[::-1], None, None)
    assert again == sets[::-1]
    seconds = {
        n: sum(m.seconds for m, s in zip(members, sets) if s == n) for n in set(sets)
    }
    assert seconds["train"] >= 0.5 * 0.8 * sum(seconds.values()) - 1e-6

    def groups(name: str) -> set[str]:
        if "sets share them" in rule:
            return {m.text for m, s in zip(members, sets) if s == name}
        return {
            m.speaker or f"recording {m.recording}"
            if m.speaker or m.recording
            else f"text {m.text}"
            for m, s in zip(members, sets)
            if s == name
        }

    assert not groups("train") & groups("test") and not groups("dev") & groups("test")


def test_shares_and_given_sets():
    members = [Member("", f"s{n}", "", f"t{n}", 10.0) for n in range(100)]
    sets, _ = split_members(members, 0.2, 0.05)
    assert {n: sets.count(n) for n in set(sets)} == {"train": 75, "dev": 20, "test": 5}
    members[7] = Member("test", "s7", "", "t7", 10.0)
    sets, rule = split_members(members, None, None)
    assert sets[7] == "test" and sets.count("test") == 1 and sets.count("dev") == 10
    assert rule == "sets as given, dev from train, no speaker is in two sets"


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8"), max_size=8),
            st.text(st.characters(codec="utf-8"), min_size=1, max_size=100),
        ),
        min_size=1,
    )
)
def test_ids_are_unique_words_that_sort_with_their_speakers(pairs):
    from speechllm.corpora.own_data.items import Item

    items = [
        Item(name=name, audio=f"/{n}.wav", text="x", origin="o", speaker=speaker)
        for n, (speaker, name) in enumerate(pairs)
    ]
    found = make_ids(items)
    assert len({key for key, _ in found}) == len(items)
    assert all(len(key.split()) == 1 for key, _ in found)
    speakers = [speaker for _, speaker in sorted(found, key=lambda p: p[0].encode())]
    assert speakers == sorted(speakers, key=lambda s: s.encode())


# ---------------------------------------------------------------- warnings


def utterances(*rows: tuple[str, float], **fields) -> list[Utterance]:
    return [
        Utterance(f"u{n}", "train", f"s{n}", text, text, seconds, **fields)
        for n, (text, seconds) in enumerate(rows)
    ]


def names(found) -> dict[str, list[str]]:
    return {f.name: [key for key, _ in f.entries] for f in found}


def test_texts_that_do_not_fit_by_length():
    usual = [("a" * 30, 2.0 + 0.01 * n) for n in range(30)]
    rows = [*usual, ("a" * 200, 2.0), ("yes", 3.0), ("yes", 0.9)]
    found = names(check_utterances(utterances(*rows), "en"))
    # 100 letters/s and 1/s at a median of 14/s; less than a second is not compared
    assert found["text does not fit the audio by length"] == ["u30", "u31"]
    few = check_utterances(utterances(*usual[:10], ("a" * 200, 2.0)), "en")
    assert "text does not fit the audio by length" not in names(few)


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "naïve café 42 № ½", ""),
        ("en", "сafe", "с"),  # a Cyrillic homoglyph
        ("de", "Straße λ", "λ"),
        ("ru", "привет BBC", ""),
        ("ru", "hello мир, friend", "hellofriend"),
        ("ja", "今日はNHKのニュースー", ""),
        ("ja", "おはよう 안녕", "안녕"),
        ("zh", "你好 ﾊﾛｰ", "ハロー"),
        ("fa", "سلام hi", ""),
    ],
)
def test_letters_of_other_scripts(language, text, expected):
    assert foreign_letters(text, language) == expected


def test_case():
    texts = ("HELLO YOU", "hello you", "Hello you", "OK", "日本語です")
    expected = ["upper", "lower", "mixed", "", ""]
    assert [case_of(text) for text in texts] == expected
    normal = [(f"Sentence number {n}.", 2.0) for n in range(50)]
    found = check_utterances(utterances(*normal, ("SHOUTED TEXT", 2.0)), "en")
    assert names(found)["mixed case"] == ["u50"]
    assert "mixed case" not in names(check_utterances(utterances(*normal), "en"))
    upper = [(f"SENTENCE {n}", 2.0) for n in range(50)]
    assert "all upper case" in names(check_utterances(utterances(*upper), "en"))


def test_ctc_and_common_texts_and_lost_characters():
    rows = [(f"text {n}", 2.0) for n in range(6)]
    found = utterances(*rows, ctc_error=0.2)
    found.append(Utterance("bad", "train", "s", "text 9", "text 9", 2.0, 0.95))
    found.append(Utterance("dev1", "dev", "s", "Text, 3!", "Text, 3!", 2.0))
    found.append(Utterance("dev2", "dev", "s", "na\ufffdve", "na\ufffdve", 2.0))
    listed = names(check_utterances(found, "en"))
    assert listed["text does not fit the audio by CTC"] == ["bad"]
    assert listed["texts of dev or test in train"] == ["dev1"]
    assert listed["lost characters"] == ["dev2"]
    assert "byte-order mark" not in listed and "other scripts" not in listed
