"""Repair of data dirs, compared with hand-made ones."""

from __future__ import annotations

import pytest

from speechllm.bin.data_dir import main
from speechllm.data.fix_data_dir import fix_data_dir
from speechllm.data.validation import validate_data_dir
from speechllm.utils.errors import UserError

BROKEN = {
    "wav.scp": "r2 {audio}\nr1 {audio}\nr3 {audio}\nr2 {audio}\n",
    "segments": "a-2 r1 1 2\na-1 r1 0 1\nb-1 r2 0 1\nb-2 r4 0 1\nb-3 r2 1 2\n",
    "utt2spk": "a-1 a\na-2 a\nb-1 b\nb-2 b\nb-3 b\nc-1 c\n",
    "utt2lang": "\ufeffa-1 en\r\na-2 en\r\nb-1 en\r\nb-2 en\r\nb-3 en\r\n",
    "text": "a-1 one\n\na-2 two\nb-1 \u3000three\nb-2 four\nb-3 five\nb-3 six\n",
    "text.de": "a-2 zwei\nc-1 nein\n",
    "spk2utt": "a a-1\n",
}
FIXED = {
    "wav.scp": "r1 {audio}\nr2 {audio}\n",
    "segments": "a-1 r1 0 1\na-2 r1 1 2\nb-1 r2 0 1\n",
    "utt2spk": "a-1 a\na-2 a\nb-1 b\n",
    "utt2lang": "a-1 en\na-2 en\nb-1 en\n",
    "text": "a-1 one\na-2 two\nb-1 \u3000three\n",
    "text.de": "a-2 zwei\n",
    "spk2utt": "a a-1 a-2\nb b-1\n",
}


@pytest.fixture
def data(tmp_path):
    audio = tmp_path / "my audio.wav"
    audio.write_bytes(b"")
    folder = tmp_path / "data"
    folder.mkdir()
    for name, text in BROKEN.items():
        (folder / name).write_bytes(text.format(audio=audio).encode())
    (folder / "notes").write_text("mine")
    return folder


def content(folder) -> dict[str, str]:
    return {
        p.name: p.read_bytes().decode(errors="replace")
        for p in folder.iterdir()
        if p.is_file()
    }


def filled(tables, data) -> dict[str, str]:
    audio = data.parent / "my audio.wav"
    return {name: text.format(audio=audio) for name, text in tables.items()}


def test_tables_are_repaired_and_the_old_ones_kept(data, capsys):
    main(["fix_data_dir", "--input", str(data)])
    assert content(data) == filled(FIXED, data) | {"notes": "mine"}
    assert content(data / ".backup") == filled(BROKEN, data)
    assert validate_data_dir(data) == []
    assert capsys.readouterr().out.splitlines() == [
        f"{data}/segments: removed 1 (their recording is not in wav.scp): b-2; "
        "removed 1 (not in all tables): b-3",
        f"{data}/spk2utt: made from utt2spk",
        f"{data}/text: removed 1 blank lines; removed 1 (several different "
        "values): b-3; removed 1 (not in all tables): b-2",
        f"{data}/text.de: removed 1 (not in all tables): c-1",
        f"{data}/utt2lang: removed 2 (not in all tables): b-2, b-3",
        f"{data}/utt2spk: removed 3 (not in all tables): b-2, b-3, c-1",
        f"{data}/wav.scp: removed 1 repeated lines; removed 1 (no segment uses "
        "them): r3",
        f"{data}: 3 utterances",
    ]


def test_nothing_is_written_if_nothing_is_to_be_repaired(data, capsys):
    fix_data_dir(data)
    before = content(data)
    main(["fix_data_dir", "--input", str(data)])
    out = capsys.readouterr().out
    assert out == f"{data}: nothing to repair\n{data}: 3 utterances\n"
    assert content(data) == before and not (data / ".backup.2").exists()
    (data / "text").write_text("b-1 three\na-1 one\na-2 two\n")
    assert fix_data_dir(data) == [f"{data}/text: sorted"]
    assert content(data / ".backup.2") == {"text": "b-1 three\na-1 one\na-2 two\n"}


def test_problems_that_remain_are_printed(data, capsys):
    (data / "utt2lang").write_text("a-1 English\na-2 en\nb-1 en\n")
    with pytest.raises(UserError, match="1 problems remain"):
        main(["fix_data_dir", "--input", str(data)])
    remains = capsys.readouterr().out.splitlines()[-1]
    assert remains.startswith(
        f"remains: {data}/utt2lang:1: 'English' is not a language"
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("text", b"a-1 \xff\n", "text:1: not UTF-8"),
        (
            "text",
            b"x-1 x\n",
            "no utterance is in all of segments, text, utt2lang, utt2",
        ),
        ("utt2spk", b"a-1\na-2 a\nb-1 b\n", "a-1 needs exactly one speaker"),
        ("wav.scp", None, "wav.scp: the table does not exist"),
        ("utt2lang", None, "utt2lang: the table does not exist"),
    ],
)
def test_errors_change_nothing(data, name, text, message):
    if text is None:
        (data / name).unlink()
    else:
        (data / name).write_bytes(text)
    before = content(data)
    with pytest.raises(UserError, match=message):
        fix_data_dir(data)
    assert content(data) == before and not (data / ".backup").exists()
