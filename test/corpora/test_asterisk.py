"""Asterisk: download with checksums, both layouts, splits and dropped entries."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import tarfile

import pytest

from speechllm.bin.prepare_data import main
from speechllm.corpora import _asterisk_fetch as fetch
from speechllm.corpora import _debian, _download, asterisk, corpus_names
from speechllm.corpora.asterisk import (
    SETS,
    Entry,
    assign_sets,
    clean_text,
    prepare_asterisk,
    read_language,
)
from speechllm.data.kaldi_table import read_dropped, read_table
from speechllm.data.statistics import statistics
from speechllm.data.validation import validate_data_dir
from speechllm.text.normalization import ctc_text
from speechllm.utils.errors import UserError

LANGUAGES = ("en", "es", "fr", "it", "ru")


@pytest.fixture(scope="module")
def prepared(asterisk_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepare_asterisk(asterisk_dir, folder)
    return folder


def read(folder, table: str) -> dict[str, str]:
    """Read one table of all sets."""
    tables = [read_table(folder / name / table) for name in SETS]
    return {key: value for entries in tables for key, value in entries.items()}


def test_every_set_is_valid_and_has_every_language(prepared):
    for name in SETS:
        assert validate_data_dir(prepared / name) == []
        rows = statistics(prepared / name)
        assert [row["language"] for row in rows] == [*LANGUAGES, "*"]


def test_sizes_of_the_sets(prepared):
    counts = {name: len(read_table(prepared / name / "text")) for name in SETS}
    total = sum(counts.values())
    assert total == 2548
    assert counts["test"] / total == pytest.approx(0.10, abs=0.01)
    assert counts["dev"] / total == pytest.approx(0.05, abs=0.01)


def test_no_key_or_sentence_is_in_two_sets(prepared):
    places = {}
    for name in SETS:
        languages = read_table(prepared / name / "utt2lang")
        for utt, text in read_table(prepared / name / "text").items():
            language = languages[utt]
            for item in (("key", utt[3:]), (language, ctc_text(text, language))):
                assert places.setdefault(item, name) == name, item


def test_texts_and_translations(prepared):
    text = read(prepared, "text")
    french = read(prepared, "text.fr")
    assert text["fr-auth-thankyou"] == french["en-auth-thankyou"] == "Merci."
    assert "fr-auth-thankyou" not in french
    assert text["en-dictate_forhelp"] == "press zero for help"
    assert french["en-dictate_forhelp"] == "pour l'aide, appuyez sur zéro."
    assert not any(set(value) & set("0123456789[]<>#*") for value in text.values())
    speakers = read(prepared, "utt2spk")
    assert speakers["it-auth-thankyou"] == "it_IT_m_Carlo"


def test_dropped_entries_have_reasons(prepared):
    dropped = {e.id: e for name in SETS for e in read_dropped(prepared / name)}
    expected = {
        "en-beep": "no speech",
        "en-silence_1": "no speech",
        "en-demo-instruct": "too long",
        "es-digits_0": "two texts",
        "fr-dir-welcome": "empty text",
        "fr-dollars": "no audio file",
        "en-dictate_both_help": "symbol in text",
        "it-beeperr": "text does not fit the audio",
    }
    assert {key: dropped[key].reason for key in expected} == expected
    assert dropped["en-demo-instruct"].detail.endswith("> 15 s")
    assert not dropped.keys() & read(prepared, "text").keys()


def test_preparation_is_deterministic(asterisk_dir, prepared, tmp_path):
    prepare_asterisk(asterisk_dir, tmp_path)
    for name in SETS:
        for path in (prepared / name).iterdir():
            assert path.read_bytes() == (tmp_path / name / path.name).read_bytes()


def test_keys_that_share_a_text_share_a_set():
    entries = [Entry(f"key{n}", "en", f"text {n}", None) for n in range(200)]
    entries += [
        Entry("key3", "fr", "Le même.", None),
        Entry("k", "fr", "le même", None),
    ]
    entries += [Entry("k", "it", "uno", None), Entry("key9", "it", "Uno!", None)]
    sets = assign_sets(entries)
    assert sets["key3"] == sets["k"] == sets["key9"]
    assert sets == assign_sets(reversed(entries))
    assert sum(name == "test" for name in sets.values()) == pytest.approx(20, abs=3)


def test_each_prompt_is_in_the_test_set_of_one_fold(asterisk_dir):
    """The recipe's own split is the first of ten folds."""
    entries = [e for lang in ("en", "fr") for e in read_language(asterisk_dir, lang)[0]]
    keys = {entry.key for entry in entries}
    for folds in (2, 5, 10):
        tested: list[str] = []
        for fold in range(1, folds + 1):
            sets = assign_sets(entries, folds, fold)
            assert sets.keys() == keys
            sizes = {name: list(sets.values()).count(name) for name in set(SETS)}
            assert sizes["test"] == pytest.approx(len(keys) / folds, abs=12)
            assert sizes["dev"] == pytest.approx(len(keys) / 20, abs=12)
            assert min(sizes.values()) > 0
            tested += [key for key in keys if sets[key] == "test"]
            texts: dict[tuple[str, str], set[str]] = {}
            for entry in entries:
                place = entry.language, ctc_text(entry.text, entry.language)
                texts.setdefault(place, set()).add(sets[entry.key])
            assert all(len(found) == 1 for found in texts.values())
        assert sorted(tested) == sorted(keys)
    assert assign_sets(entries) == assign_sets(entries, 10, 1)
    with pytest.raises(UserError, match="--fold 6 --folds 5: 2 to 20 folds"):
        prepare_asterisk(asterisk_dir, "unused", folds=5, fold=6)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  Two  spaces. ", "Two spaces."),
        ("conf: Нажмите", "Нажмите"),
        ("“Pour quitter.”", "Pour quitter."),
        ("...pour bloquer", "pour bloquer"),
        ("will be exactly...", "will be exactly"),
        ("", ""),
    ],
)
def test_clean_text(raw, clean):
    assert clean_text(raw, "conf") == clean


def test_layout_of_upstreams_tarballs(asterisk_dir, tmp_path, prepared):
    """One folder per language, with texts and sounds."""
    for language in LANGUAGES:
        folder = tmp_path / "up" / language
        folder.mkdir(parents=True)
        debian = next(asterisk_dir.rglob(f"sounds/{language}_*"))
        for path in debian.iterdir():
            (folder / path.name).symlink_to(path)
        for key in ("digits", "letters"):  # rglob does not follow links to folders
            (folder / key).unlink()
            (folder / key).mkdir()
            for path in (debian / key).iterdir():
                (folder / key / path.name).symlink_to(path)
        packed = next(asterisk_dir.rglob(f"core-sounds-{language}.txt.gz"))
        text = gzip.decompress(packed.read_bytes())
        (folder / f"core-sounds-{language}.txt").write_bytes(text)
    prepare_asterisk(tmp_path / "up", tmp_path / "data")
    ours, theirs = read(tmp_path / "data", "text"), read(prepared, "text")
    assert len(ours) > 2000
    assert ours.items() <= theirs.items()


def test_folder_without_the_sounds_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"no core-sounds-en.txt below it; unpack the"):
        prepare_asterisk(tmp_path, tmp_path / "data")
    (tmp_path / "core-sounds-en.txt").write_text("a: b\n")
    with pytest.raises(UserError, match="has core-sounds-en.txt but no en sounds"):
        prepare_asterisk(tmp_path, tmp_path / "data")
    (tmp_path / "a.g722").write_bytes(b"12345678")
    (tmp_path / "core-sounds-en.txt").write_bytes(b"a: caf\xe9\n")
    with pytest.raises(UserError, match=r"core-sounds-en.txt: not UTF-8 at byte 6"):
        prepare_asterisk(tmp_path, tmp_path / "data")


def serve_tarballs(folder, monkeypatch) -> None:
    """Replace upstream's tarballs and their checksums by small ones."""
    for language in LANGUAGES:
        source = folder / language
        source.mkdir(parents=True)
        (source / "hello.g722").write_bytes(bytes(16000))
        (source / f"core-sounds-{language}.txt").write_text("hello: Hello.\n")
        path = folder / f"{language}.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for file in source.iterdir():
                archive.add(file, file.name)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setitem(fetch._TARBALL_SHA256, language, digest)
    monkeypatch.setattr(fetch, "_TARBALLS", (f"file://{folder}/{{lang}}.tar.gz",))
    monkeypatch.setattr(_debian.shutil, "which", lambda name: None)
    monkeypatch.setattr(_download, "_FIRST_WAIT_SECONDS", 0.0)


def test_tarballs_are_downloaded_without_apt(tmp_path, monkeypatch):
    serve_tarballs(tmp_path / "served", monkeypatch)
    folder = fetch.fetch_asterisk(tmp_path / "downloads")
    assert (folder / "ru" / "core-sounds-ru.txt").is_file()
    monkeypatch.setattr(fetch, "_TARBALLS", ())
    assert fetch.fetch_asterisk(tmp_path / "downloads") == folder  # downloaded once
    prepare_asterisk(folder, tmp_path / "data")


def test_wrong_checksum_is_an_error(tmp_path, monkeypatch):
    serve_tarballs(tmp_path / "served", monkeypatch)
    monkeypatch.setitem(fetch._TARBALL_SHA256, "fr", "0" * 64)
    with pytest.raises(
        UserError,
        match=r"served/fr.tar.gz: the file received has sha256 .*instead of 000",
    ):
        fetch.fetch_asterisk(tmp_path / "downloads")
    kept = [f"asterisk-core-sounds-{name}-g722-1.6.1.tar.gz" for name in ("en", "es")]
    assert sorted(os.listdir(tmp_path / "downloads")) == kept


def test_tarballs_of_an_interrupted_run_are_used(tmp_path, monkeypatch):
    """The second address serves what the first one lacks."""
    serve_tarballs(tmp_path / "served", monkeypatch)
    addresses = (f"file://{tmp_path}/none/{{lang}}", *fetch._TARBALLS)
    monkeypatch.setattr(fetch, "_TARBALLS", addresses)
    (tmp_path / "served/it.tar.gz").rename(tmp_path / "it.tar.gz")
    with pytest.raises(UserError, match=r"none/it: .*served/it.tar.gz: "):
        fetch.fetch_asterisk(tmp_path / "downloads")
    (tmp_path / "it.tar.gz").rename(tmp_path / "served/it.tar.gz")
    (tmp_path / "served/en.tar.gz").unlink()
    folder = fetch.fetch_asterisk(tmp_path / "downloads")
    assert sorted(os.listdir(folder)) == [".speechllm_output", *sorted(LANGUAGES)]
    assert os.listdir(tmp_path / "downloads") == [folder.name]


def test_tarball_cannot_write_outside_its_folder(tmp_path, monkeypatch):
    serve_tarballs(tmp_path / "served", monkeypatch)
    path = tmp_path / "served" / "en.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tmp_path / "served/fr/hello.g722", "../../../evil.g722")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(fetch._TARBALL_SHA256, "en", digest)
    with pytest.raises((UserError, tarfile.TarError)):
        fetch.fetch_asterisk(tmp_path / "downloads")
    assert not list(tmp_path.rglob("evil*"))


def test_message_without_network_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(_debian.shutil, "which", lambda name: None)
    monkeypatch.setattr(_download, "_FIRST_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(fetch, "_TARBALLS", (f"file://{tmp_path}/none-{{lang}}",))
    with pytest.raises(
        UserError, match="apt-get is not installed.*--asterisk_dir"
    ) as error:
        fetch.fetch_asterisk(tmp_path / "downloads")
    assert "asterisk-core-sounds-en-g722" in str(error.value)


def test_apt_without_package_lists_downloads_its_own(tmp_path, monkeypatch):
    """Package lists are downloaded into a folder that needs no root."""
    calls = []

    def run(command, **options):
        calls.append(command)
        known = any("Dir::State=" in part for part in command)
        status = 0 if known else 100
        return subprocess.CompletedProcess(
            command, status, "", "E: Unable to locate package asterisk-core-sounds-en\n"
        )

    monkeypatch.setattr(_debian.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(_debian.subprocess, "run", run)
    with pytest.raises(FileNotFoundError):  # the mock downloads nothing
        fetch.fetch_asterisk(tmp_path / "downloads")
    assert [call[-1] == "update" for call in calls] == [False, True, False]


def test_corpus_names_and_command_line(asterisk_dir, tmp_path, capsys):
    assert "asterisk" in corpus_names()
    assert not any(name.startswith("_") for name in corpus_names())
    output = str(tmp_path / "data")
    main(["asterisk", "--asterisk_dir", str(asterisk_dir), "--output", output])
    assert "| test | * |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["no_such_corpus"])


def test_two_keys_with_the_same_utterance_id_are_an_error():
    tables = asterisk._empty_tables()
    first = Entry("a/b", "en", "x", asterisk.Path("x.g722"))
    asterisk._add(tables, first, 1.0, {})
    with pytest.raises(UserError, match="two keys have the utterance id en-a_b"):
        asterisk._add(tables, Entry("a_b", "en", "x", asterisk.Path("y")), 1.0, {})
