"""Spoken messages: selection, exclusion of test texts and synthesis."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechllm.corpora._espeak import Voice, speak
from speechllm.corpora.spoken_messages import (
    prepare_spoken_messages,
    read_messages,
    speakable,
)
from speechllm.data.data_dir import write_data_dir
from speechllm.data.kaldi_table import read_table
from speechllm.data.validation import validate_data_dir
from speechllm.utils.errors import UserError


def mo_file(messages: dict[str, str]) -> bytes:
    """Return a catalogue in the format of GNU gettext's manual, "MO Files"."""
    content = {"": "Content-Type: text/plain; charset=UTF-8\n", **messages}
    pairs = sorted((k.encode(), v.encode()) for k, v in content.items())
    header = 28
    offset = header + 16 * len(pairs)
    tables, strings = [b"", b""], b""
    for column in (0, 1):
        for pair in pairs:
            text = pair[column]
            tables[column] += np.array([len(text), offset], "<u4").tobytes()
            strings += text + b"\0"
            offset += len(text) + 1
    fields = [0x950412DE, 0, len(pairs), header, header + 8 * len(pairs), 0, 0]
    return np.array(fields, "<u4").tobytes() + tables[0] + tables[1] + strings


FRENCH = {
    "Your password has been changed.": "Votre mot de passe a été modifié.",
    "menu\x04Add a new user": "Ajouter un utilisateur",
    "%(count)s files have gone": "%(count)s fichiers ont disparu",
    "Cancel": "Annuler",
    "Enter 2 names": "Saisissez les 2 noms",
    "Select all files": "Select all files",
    "Select all": "Tout sélectionner ici",
}
SPANISH = {"Your password has been changed.": "Su contraseña ha cambiado."}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    path = tmp_path_factory.mktemp("wheel") / "package.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("app/locale/fr/LC_MESSAGES/app.mo", mo_file(FRENCH))
        archive.writestr("app/locale/es/LC_MESSAGES/app.mo", mo_file(SPANISH))
        archive.writestr("app/locale/de/LC_MESSAGES/app.mo", mo_file(SPANISH))
    return path


def test_speakable_messages_are_read(wheel):
    assert read_messages([wheel]) == [
        {"en": "Add a new user", "fr": "Ajouter un utilisateur"},
        {"en": "Enter 2 names", "fr": "Saisissez les 2 noms"},
        {
            "en": "Your password has been changed.",
            "es": "Su contraseña ha cambiado.",
            "fr": "Votre mot de passe a été modifié.",
        },
    ]


@pytest.mark.parametrize(
    "text", ["See https://a.org", "Use JSON here", "the <b>bold</b> one", "a", "x 2024"]
)
def test_unspeakable_texts(text):
    assert not speakable(text)


def test_file_that_is_not_a_wheel_is_an_error(tmp_path):
    (tmp_path / "x.whl").write_text("no zip")
    with pytest.raises(UserError, match="x.whl"):
        read_messages([tmp_path / "x.whl"])


def test_data_dir_excludes_texts_of_the_test_set(wheel, tmp_path):
    write_data_dir(
        tmp_path / "test",
        {
            "utt2spk": {"fr-1": "a"},
            "utt2lang": {"fr-1": "fr"},
            "text": {"fr-1": "Ajouter un utilisateur!"},
        },
    )
    count = prepare_spoken_messages(
        read_messages([wheel]),
        tmp_path / "train",
        tmp_path / "audio",
        languages=("en", "fr"),
        exclude=[tmp_path / "test"],
    )
    assert count == 4
    names, password = (
        "message-" + hashlib.sha256(text.encode()).hexdigest()[:12]
        for text in ("Enter 2 names", "Your password has been changed.")
    )
    assert read_table(tmp_path / "train" / "text") == {
        f"en-{names}": "Enter two names",
        f"en-{password}": "Your password has been changed.",
        f"fr-{names}": "Saisissez les deux noms",
        f"fr-{password}": "Votre mot de passe a été modifié.",
    }
    assert read_table(tmp_path / "train" / "text.es") == {
        f"en-{password}": "Su contraseña ha cambiado.",
        f"fr-{password}": "Su contraseña ha cambiado.",
    }
    assert validate_data_dir(tmp_path / "train") == []
    wavs = read_table(tmp_path / "train" / "wav.scp")
    speech, rate = soundfile.read(wavs[f"en-{password}"])
    assert rate == 16000 and 1.0 < len(speech) / rate < 5.0


def test_files_are_named_after_their_texts(wheel, tmp_path):
    def prepare(messages):  # French text -> its file and modification time
        folder = tmp_path / "train"
        prepare_spoken_messages(messages, folder, tmp_path / "audio", ("fr",))
        texts, wavs = read_table(folder / "text"), read_table(folder / "wav.scp")
        stamps = {name: Path(path).stat().st_mtime_ns for name, path in wavs.items()}
        return {texts[name]: (wavs[name], stamps[name]) for name in texts}

    messages = read_messages([wheel])
    first = prepare(messages)
    assert len(first) == 3
    second = prepare([{**messages[0], "fr": "Ajouter une personne"}, *messages[1:]])
    ((text, (path, _)),) = second.items() - first.items()
    assert text == "Ajouter une personne"
    assert path not in {path for path, _ in first.values()}


def test_speaking_rate_and_amplitude():
    slow = speak("good morning", Voice("en-us", words_per_minute=100))
    fast = speak("good morning", Voice("en-us", words_per_minute=200))
    assert slow.dtype == np.float32 and np.abs(slow).max() <= 1
    assert len(fast) < 0.7 * len(slow)
    assert np.abs(slow).max() > 0.05


def test_unknown_voice_is_an_error():
    with pytest.raises(UserError, match="no-such-voice"):
        speak("hello", Voice("no-such-voice"))
