"""Asterisk core sounds 1.6.1: the spoken prompts of a telephone exchange.

Human voices in English, Spanish, French, Italian and Russian, one per language, with
transcripts. A key is the same prompt in every language, so that the sounds are a small
parallel corpus for speech translation. Licence: CC-BY-SA 3.0, Russian CC-BY 3.0.

Layout of Debian's packages::

    usr/share/asterisk/sounds/<voice>/<key>.g722       (voice: en_US_f_Allison, …)
    usr/share/doc/asterisk-core-sounds-<lang>/core-sounds-<lang>.txt.gz

or of upstream's tarballs, one folder per language::

    <lang>/<key>.g722
    <lang>/core-sounds-<lang>.txt

Lines of the text files are ``key: text``, comments begin with ``;``. A text with a
bracket describes a sound other than speech.

Output: data dirs ``train``, ``dev`` and ``test``, each with all five languages.
Utterance ids are ``<lang>-<key>`` with "_" for "/"; the speaker is the voice; numbers
are spelt out; translations of the same key are in ``text.<lang>``. Dropped entries are
in ``dropped.tsv`` with the reason (of the key's set, or of train for keys that are not
usable in any language).

The split is by prompt: all keys that share a text (normalised, in any language) form a
group, so that no sentence is in two sets. Groups are ordered by the MD5 of their first
key (modulo 100, then whole); the first tenth of the keys is test, the next twentieth
dev, the rest train. With ``--folds N --fold K``, test is the K-th of N parts of the
keys, and dev the twentieth after it (after the last part, the first keys). Each group
is in the test set of one fold.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from speechllm.corpora._asterisk_fetch import LANGUAGES, fetch_asterisk
from speechllm.data.data_dir import write_data_dir
from speechllm.data.kaldi_table import Dropped
from speechllm.data.statistics import statistics
from speechllm.text.normalization import ctc_text
from speechllm.text.number_spelling import spell_numbers
from speechllm.utils.errors import UserError

SETS = ("train", "dev", "test")
FOLDS, FOLD = 10, 1  # test is the first tenth of the keys
DEV_SHARE = 20  # dev is a twentieth
MAX_FOLDS = 20
# Upstream's voices; the folders of its layout do not name them.
VOICES = {
    "en": "en_US_f_Allison",
    "es": "es_MX_f_Allison",
    "fr": "fr_CA_f_June",
    "it": "it_IT_m_Carlo",
    "ru": "ru_RU_f_IvrvoiceRU",
}
_SOUND = re.compile(r"[\[(<]")  # [beep], (1 second of silence), <beep ascending>
_SYMBOL = re.compile(r"[#*=+$@]")  # their pronunciation is not in the text
_MAX_CHARACTERS_PER_SECOND = 40  # faster than speech: not the text of this file


@dataclass(frozen=True)
class Entry:
    """A prompt in one language; ``path`` is None if its audio file is missing."""

    key: str
    language: str
    text: str
    path: Path | None

    @property
    def utterance(self) -> str:
        return f"{self.language}-{self.key.replace('/', '_')}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, default=Path("data"), help="folder of the data dirs"
    )
    parser.add_argument(
        "--asterisk_dir", type=Path, help="unpacked sounds [downloaded]"
    )
    parser.add_argument("--download_dir", type=Path, default=Path("downloads"))
    parser.add_argument(
        "--max_seconds", type=float, default=15.0, help="maximum length of a prompt"
    )
    parser.add_argument(
        "--folds",
        type=int,
        default=FOLDS,
        help=f"number of parts of the prompts, one of which is test [{FOLDS}]",
    )
    parser.add_argument(
        "--fold", type=int, default=FOLD, help=f"number of the test part [{FOLD}]"
    )


def run(args: argparse.Namespace) -> None:
    folder = args.asterisk_dir or fetch_asterisk(args.download_dir)
    prepare_asterisk(folder, args.output, args.max_seconds, args.folds, args.fold)
    print("| set | language | utterances | minutes |\n| --- | --- | ---: | ---: |")
    for name in SETS:
        for row in statistics(args.output / name):
            print(
                f"| {name} | {row['language']} | {row['utterances']} "
                f"| {row['minutes']:.1f} |"
            )


def prepare_asterisk(
    asterisk_dir: str | Path,
    output_dir: str | Path,
    max_seconds: float = 15.0,
    folds: int = FOLDS,
    fold: int = FOLD,
) -> None:
    """Write ``train``, ``dev`` and ``test`` below ``output_dir``.

    Args:
        asterisk_dir: unpacked sounds in one of the two layouts above.
        output_dir: folder of the data dirs.
        max_seconds: maximum length of a prompt; longer ones are dropped.
        folds, fold: number of parts of the prompts, and number of the test part.

    Raises:
        UserError: the folder lacks a language's sounds or texts, or there is no such
            fold.
    """
    if not (2 <= folds <= MAX_FOLDS and 1 <= fold <= folds):
        raise UserError(
            f"--fold {fold} --folds {folds}: 2 to {MAX_FOLDS} folds, numbered from 1"
        )
    usable, dropped = [], []
    for language in LANGUAGES:
        entries, problems = read_language(Path(asterisk_dir), language)
        usable += entries
        dropped += problems
    set_of = assign_sets(usable, folds, fold)
    translations = defaultdict(dict)  # key -> language -> text
    for entry in usable:
        translations[entry.key][entry.language] = entry.text
    tables = {name: _empty_tables() for name in SETS}
    lists = {name: [] for name in SETS}
    for entry, reason, detail in dropped:
        lists[set_of.get(entry.key, SETS[0])].append(
            Dropped(entry.utterance, "prepare_data", reason, detail)
        )
    for entry in usable:
        name = set_of[entry.key]
        problem, seconds = _check_audio(entry, max_seconds)
        if problem:
            lists[name].append(Dropped(entry.utterance, "prepare_data", *problem))
            continue
        _add(tables[name], entry, seconds, translations[entry.key])
    for name in SETS:
        write_data_dir(Path(output_dir) / name, tables[name], lists[name])


def read_language(
    asterisk_dir: Path, language: str
) -> tuple[list[Entry], list[tuple[Entry, str, str]]]:
    """Read one language's prompts: usable entries, and dropped (entry, reason, detail).

    A usable entry has a text of speech. Its file may be missing or too long; the text
    is still used as a translation.
    """
    text_file, sounds = find_language(asterisk_dir, language)
    files = {
        path.relative_to(sounds).with_suffix("").as_posix(): path
        for path in sorted(sounds.rglob("*.g722"))
    }
    texts, dropped = defaultdict(list), []
    for number, line in enumerate(_read_lines(text_file), 1):
        line = line.strip()
        if not line or line.startswith(";"):
            continue
        key, colon, text = line.partition(":")
        if not colon:
            raise UserError(f"{text_file}:{number}: expected 'key: text'")
        texts[key.strip()].append(clean_text(text, key.strip()))
    usable = []
    for key in sorted(texts.keys() | files.keys()):
        different = sorted(set(texts.get(key, ())))
        text = different[0] if len(different) == 1 else ""
        spelt = spell_numbers(text, language)
        entry = Entry(key, language, spelt, files.get(key))
        if not different:
            dropped.append((entry, "no text", f"{files[key].name} has no line"))
        elif len(different) > 1:
            dropped.append((entry, "two texts", " / ".join(different)))
        elif _SOUND.search(text):
            dropped.append((entry, "no speech", text))
        elif _SYMBOL.search(text):
            dropped.append((entry, "symbol in text", text))
        elif not ctc_text(spelt, language):
            dropped.append((entry, "empty text", text))
        else:
            usable.append(entry)
    return usable, dropped


def find_language(asterisk_dir: Path, language: str) -> tuple[Path, Path]:
    """Find a language's text file and the folder of its sounds."""
    name = f"core-sounds-{language}.txt"
    for text_file in sorted(asterisk_dir.rglob(f"{name}*")):
        if text_file.name not in (name, f"{name}.gz"):
            continue
        debian = sorted(asterisk_dir.rglob(f"sounds/{language}_*"))
        for sounds in [text_file.parent, *debian]:
            if sounds.is_dir() and any(sounds.rglob("*.g722")):
                return text_file, sounds
        raise UserError(
            f"{asterisk_dir}: has {text_file.name} but no {language} sounds; unpack "
            f"asterisk-core-sounds-{language}-g722 there too"
        )
    raise UserError(
        f"{asterisk_dir}: no {name} below it; unpack the Debian packages "
        f"asterisk-core-sounds-{language} and asterisk-core-sounds-{language}-g722 "
        "there, or omit --asterisk_dir to download them"
    )


def clean_text(text: str, key: str) -> str:
    """Remove a repeated key, quotation marks and ellipses at the ends of a text."""
    text = " ".join(text.split()).removeprefix(f"{key}: ")
    text = re.sub(r'[“”"«»]', "", text)
    return re.sub(r"^(?:\.\.\.|…)\s*|\s*(?:\.\.\.|…)$", "", text).strip()


def assign_sets(
    entries: Iterable[Entry], folds: int = FOLDS, fold: int = FOLD
) -> dict[str, str]:
    """Assign each key to a set, together with all keys that share a text with it.

    Args:
        entries: prompts of all languages.
        folds, fold: number of parts of the prompts, and number of the test part.
    """
    leader = {}  # union-find over keys and (language, text)

    def find(item):
        leader.setdefault(item, item)
        while leader[item] != item:
            leader[item] = leader[leader[item]]
            item = leader[item]
        return item

    keys = set()
    for entry in entries:
        keys.add(entry.key)
        normal = ctc_text(entry.text, entry.language)
        root = find(("key", entry.key))
        if normal:
            leader[find((entry.language, normal))] = root
    groups = defaultdict(list)
    for key in sorted(keys):
        groups[find(("key", key))].append(key)
    sets, placed = {}, 0
    for group in sorted(groups.values(), key=lambda group: _place(group[0])):
        # in units of 1 / (folds · keys), counted from the beginning of the test part
        position = (folds * placed - (fold - 1) * len(keys)) % (folds * len(keys))
        if position < len(keys):
            name = "test"
        elif DEV_SHARE * (position - len(keys)) < folds * len(keys):
            name = "dev"
        else:
            name = "train"
        sets |= dict.fromkeys(group, name)
        placed += len(group)
    return sets


def _place(key: str) -> tuple[int, int]:
    digest = int(hashlib.md5(key.encode()).hexdigest(), 16)
    return digest % 100, digest


def _check_audio(
    entry: Entry, max_seconds: float
) -> tuple[tuple[str, str] | None, float]:
    """Return ((reason, detail) or None, seconds) for a usable entry's file."""
    from speechllm.audio.io import audio_info

    if entry.path is None:
        return ("no audio file", ""), 0.0
    try:
        seconds = audio_info(entry.path).seconds
    except UserError as error:
        return ("unreadable audio", str(error)), 0.0
    if seconds > max_seconds:
        return ("too long", f"{seconds:.2f} s > {max_seconds:g} s"), seconds
    if len(entry.text) > _MAX_CHARACTERS_PER_SECOND * seconds:
        detail = f"{len(entry.text)} characters in {seconds:.2f} s"
        return ("text does not fit the audio", detail), seconds
    return None, seconds


def _empty_tables() -> dict[str, dict[str, str]]:
    names = ["wav.scp", "utt2spk", "utt2lang", "utt2dur", "text"]
    return {name: {} for name in [*names, *(f"text.{lang}" for lang in LANGUAGES)]}


def _add(
    tables: dict[str, dict[str, str]],
    entry: Entry,
    seconds: float,
    texts: dict[str, str],
) -> None:
    utterance = entry.utterance
    if utterance in tables["text"]:
        raise UserError(
            f"{entry.path}: two keys have the utterance id {utterance}; rename one file"
        )
    tables["wav.scp"][utterance] = os.path.abspath(entry.path)
    tables["utt2spk"][utterance] = VOICES[entry.language]
    tables["utt2lang"][utterance] = entry.language
    tables["utt2dur"][utterance] = f"{seconds:.3f}"
    tables["text"][utterance] = entry.text
    for language, text in texts.items():
        if language != entry.language:
            tables[f"text.{language}"][utterance] = text


def _read_lines(path: Path) -> list[str]:
    content = path.read_bytes()
    try:
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        return content.decode("utf-8-sig").splitlines()
    except (OSError, EOFError) as error:
        raise UserError(
            f"{path}: cannot be unpacked ({error}); download it again"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 at byte {error.start}; download it again"
        ) from None
