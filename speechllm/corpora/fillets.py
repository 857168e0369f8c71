"""Fish Fillets NG 1.0.1: acted dialogues of a game, in Czech and Dutch.

Two fishes, and in Czech some twenty other characters, talk in 81 levels. The texts of
the recordings are translated into English and up to nine other languages under the
same key. Licence: GPL-2.

Layout of Debian's packages fillets-ng-data-cs, fillets-ng-data-nl (recordings) and
fillets-ng-data (texts)::

    usr/share/games/fillets-ng/sound/<level>/<lang>/<key>.ogg
    usr/share/games/fillets-ng/sound/share/<part>/<lang>/<key>.ogg
    usr/share/games/fillets-ng/script/<level>/dialogs_<lang>.lua
    usr/share/games/fillets-ng/script/<level>/<part>_dialogs_<lang>.lua

The Lua files contain pairs of calls, which are read without running them::

    dialogId("let-m-divna", "font_small", "What kind of strange ship is that?")
    dialogStr("Co je to za divnou loď?")

Output: data dirs ``train``, ``dev`` and ``test``, each with both languages. Utterance
ids are ``<lang>_<role>-<level>-<key>`` and speakers ``<lang>_<role>``. The role is the
font, which names a character (``small``, ``big``, ``parrot``, …); a font that is a
colour belongs to a character of one level, ``<level>_<colour>``. Numbers in transcripts
are spelt out; translations are in ``text.<lang>``, without those that are only a copy
of the English text.

The split is by level: levels are ordered by the MD5 of their names; the first ones are
test until they have a tenth of all utterances, the next ones dev until these have a
twentieth, the rest train. Sentences of test, as transcript or translation in any
language, are dropped from dev and train, and those of dev from train; the dropped
recordings and their reasons are in ``dropped.tsv``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from speechllm.corpora._debian import Package, fetch_packages, unpack_deb
from speechllm.corpora._lua_calls import read_calls
from speechllm.corpora._texts import clean_text
from speechllm.data.data_dir import write_data_dir
from speechllm.data.kaldi_table import Dropped
from speechllm.data.statistics import statistics
from speechllm.text.normalization import ctc_text, spell_numbers
from speechllm.utils.errors import UserError
from speechllm.utils.folders import FolderKind, atomic_directory

SPOKEN = ("cs", "nl")
_WRITTEN = ("bg", "cs", "de", "es", "fr", "it", "nl", "pl", "ru", "sv")  # and English
SETS = ("train", "dev", "test")
TEST_PART, DEV_UNTIL = 0.10, 0.15  # of the utterances
SOUNDS = FolderKind("folder of Fish Fillets")
_VERSION = "1.0.1-1.1"
_SHA256 = {
    "fillets-ng-data": (
        "25de89afd8b1adf7bcace8290248a6a22c89cd42300317e69000e162c032cf84"
    ),
    "fillets-ng-data-cs": (
        "3ecef99b9456f1c80c9625c6f2418642b52d58e7167a46bad7a412db17991b14"
    ),
    "fillets-ng-data-nl": (
        "afb4443fda9ab507dee578b75be857d121718a1cd6017a474f30e0eb13dc9d10"
    ),
}
_PACKAGES = [
    Package(name, _VERSION, digest, "fillets-ng-data")
    for name, digest in _SHA256.items()
]
_WANTED = re.compile(
    r"/sound/.+/(cs|nl)/[^/]+\.ogg$|/script/.+dialogs_[a-z]{2}\.lua$|/copyright$"
)
_DIALOGS = re.compile(r"(?:\w+_)?dialogs_([a-z]{2})\.lua")
_COLOURS = {"brown", "cyan", "darkgrey", "green", "lightgrey", "magenta", "white"}
_COLOURS |= {"yellow", ""}
_UNSAFE = re.compile(r"[^\w-]")
_PLACEHOLDER = re.compile(r"%[0-9]")  # replaced by the game, not in the recording
_MAX_CHARACTERS_PER_SECOND = 40  # faster than speech: not the text of this file


class Line(NamedTuple):
    """A line of a dialogue: the font of its role, its text, and the English one."""

    font: str
    text: str
    english: str


@dataclass(frozen=True)
class Recording:
    """An audio file with the text of its key; ``line`` is None if there is none."""

    language: str
    level: str
    key: str
    path: Path
    line: Line | None

    @property
    def speaker(self) -> str:
        font = self.line.font.removeprefix("font_") if self.line else ""
        if font in _COLOURS:
            font = f"{self.level}_{font or 'other'}"
        return _UNSAFE.sub("_", f"{self.language}_{font}")

    @property
    def utterance(self) -> str:
        return _UNSAFE.sub("_", f"{self.speaker}-{self.level}-{self.key}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, default=Path("data"), help="folder of the data dirs"
    )
    parser.add_argument(
        "--fillets_dir",
        type=Path,
        help="folder with sound and script, or of the unpacked packages [downloaded]",
    )
    parser.add_argument("--download_dir", type=Path, default=Path("downloads"))
    parser.add_argument(
        "--max_seconds", type=float, default=30.0, help="maximum length of a recording"
    )
    parser.add_argument(
        "--max_utterances",
        type=int,
        help="training utterances per language, and four times fewer for dev and test",
    )


def run(args: argparse.Namespace) -> None:
    folder = args.fillets_dir or fetch_fillets(args.download_dir)
    prepare_fillets(folder, args.output, args.max_seconds, args.max_utterances)
    print(
        "| set | language | utterances | minutes | speakers |\n"
        "| --- | --- | ---: | ---: | ---: |"
    )
    for name in SETS:
        for row in statistics(args.output / name):
            print(
                f"| {name} | {row['language']} | {row['utterances']} "
                f"| {row['minutes']:.1f} | {row['speakers']} |"
            )


def fetch_fillets(download_dir: str | Path) -> Path:
    """Return the folder of the unpacked packages; download them once (142 MB).

    Raises:
        UserError: no source is available, or a file has a wrong checksum.
    """
    folder = Path(download_dir) / f"fillets-ng-data-{_VERSION}"
    if folder.is_dir():
        return folder
    debs = fetch_packages(_PACKAGES, Path(download_dir) / "packages")
    with atomic_directory(folder, SOUNDS) as new:
        for deb in debs:
            unpack_deb(deb, new, lambda name: bool(_WANTED.search(name)))
    for deb in debs:
        deb.unlink()
    if not any(debs[0].parent.iterdir()):
        shutil.rmtree(debs[0].parent)
    return folder


def prepare_fillets(
    fillets_dir: str | Path,
    output_dir: str | Path,
    max_seconds: float = 30.0,
    max_utterances: int | None = None,
) -> None:
    """Write ``train``, ``dev`` and ``test`` below ``output_dir``.

    Args:
        fillets_dir: folder that contains ``sound`` and ``script``, or the unpacked
            packages.
        output_dir: folder of the data dirs.
        max_seconds: maximum length of a recording; longer ones are dropped.
        max_utterances: if given, training utterances per language, in the order of
            their ids; dev and test get a quarter of it.

    Raises:
        UserError: the folder has no recordings or no texts of a language, a text file
            is damaged, or two recordings have the same id.
    """
    root = find_root(Path(fillets_dir))
    texts = {language: read_texts(root, language) for language in _WRITTEN}
    usable: list[Recording] = []
    dropped: list[tuple[Recording, str, str]] = []
    for language in SPOKEN:
        for recording in find_recordings(root, language, texts[language]):
            problem = _check_text(recording)
            if problem:
                dropped.append((recording, *problem))
            else:
                usable.append(recording)
    sentences = {recording: _sentences(texts, recording) for recording in usable}
    set_of = assign_levels(recording.level for recording in usable)
    usable, repeated = drop_shared_sentences(sentences, set_of)
    tables = {name: _empty_tables() for name in SETS}
    counts: Counter[tuple[str, str]] = Counter()
    for recording in sorted(usable, key=lambda recording: recording.utterance):
        name = set_of[recording.level]
        if max_utterances is not None:
            limit = max_utterances if name == "train" else (max_utterances + 3) // 4
            if counts[name, recording.language] == limit:
                continue
        audio_problem, seconds = _check_audio(recording, max_seconds)
        if audio_problem:
            dropped.append((recording, *audio_problem))
            continue
        counts[name, recording.language] += 1
        _add(tables[name], recording, seconds, sentences[recording])
    lists: dict[str, list[Dropped]] = {name: [] for name in SETS}
    for recording, reason, detail in [*dropped, *repeated]:
        lists[set_of.get(recording.level, SETS[0])].append(
            Dropped(recording.utterance, "prepare_data", reason, detail)
        )
    for name in SETS:
        write_data_dir(Path(output_dir) / name, tables[name], lists[name])


def find_root(folder: Path) -> Path:
    """Find the folder that contains ``sound`` and ``script``."""
    for root in (folder, folder / "usr" / "share" / "games" / "fillets-ng"):
        if (root / "sound").is_dir() and (root / "script").is_dir():
            return root
    names = ", ".join(package.name for package in _PACKAGES)
    raise UserError(
        f"{folder}: no folders sound and script in it; unpack the Debian packages "
        f"{names} there, or omit --fillets_dir to download them"
    )


def read_texts(root: Path, language: str) -> dict[tuple[str, str], Line]:
    """Read the texts of a language, (level, key) -> line."""
    texts: dict[tuple[str, str], Line] = {}
    for path in sorted((root / "script").glob("*/*.lua")):
        match = _DIALOGS.fullmatch(path.name)
        if match and match[1] == language:
            for key, line in _read_dialogs(path):
                texts[path.parent.name, key] = line
    if not texts and language in SPOKEN:
        raise UserError(
            f"{root / 'script'}: no texts in dialogs_{language}.lua of any level; "
            "unpack the Debian package fillets-ng-data there"
        )
    return texts


def _read_dialogs(path: Path) -> Iterator[tuple[str, Line]]:
    """Yield (key, line) of each ``dialogId`` that a ``dialogStr`` follows."""
    head: tuple[str | None, ...] = ()
    for call in read_calls(path, ("dialogId", "dialogStr")):
        if call.name == "dialogId":
            head = call.arguments
            continue
        if len(head) == 3 and len(call.arguments) == 1:
            key, font, english = head
            text = call.arguments[0]
            if None not in (key, font, english, text):
                yield str(key), Line(str(font), clean_text(text), clean_text(english))
        head = ()


def find_recordings(
    root: Path, language: str, texts: dict[tuple[str, str], Line]
) -> list[Recording]:
    """Find the recordings of a language, sorted by level and key."""
    found: dict[tuple[str, str], Recording] = {}
    for path in sorted((root / "sound").glob(f"**/{language}/*.ogg")):
        place = path.relative_to(root / "sound").parts[0], path.stem
        if place in found:
            raise UserError(
                f"{path}: {found[place].path} has the same level and key; remove one"
            )
        found[place] = Recording(language, *place, path, texts.get(place))
    if not found:
        raise UserError(
            f"{root / 'sound'}: no recordings <level>/{language}/<key>.ogg; unpack the "
            f"Debian package fillets-ng-data-{language} there"
        )
    return [found[place] for place in sorted(found)]


def _check_text(recording: Recording) -> tuple[str, str] | None:
    """Return why the text of a recording cannot be used, or None."""
    if recording.line is None:
        return "no text", f"{recording.path.name} has no line"
    text = recording.line.text
    if not ctc_text(text, recording.language):
        return "empty text", text
    if _PLACEHOLDER.search(text):
        return "placeholder in text", text
    if any(c.isalpha() and "LATIN" not in unicodedata.name(c, "") for c in text):
        return "another script", text
    return None


def _sentences(
    texts: dict[str, dict[tuple[str, str], Line]], recording: Recording
) -> dict[str, str]:
    """Return the transcript of a recording and its translations, by language."""
    assert recording.line is not None
    found = {recording.language: recording.line.text}
    if ctc_text(recording.line.english, "en"):
        found["en"] = recording.line.english
    for language in _WRITTEN:
        line = texts[language].get((recording.level, recording.key))
        if line and line.text != line.english and ctc_text(line.text, language):
            found.setdefault(language, line.text)
    return found


def assign_levels(levels: Iterable[str]) -> dict[str, str]:
    """Assign each level to a set.

    Args:
        levels: level of each utterance.
    """
    sizes = Counter(levels)
    sets, placed = {}, 0
    for level in sorted(sizes, key=lambda name: hashlib.md5(name.encode()).digest()):
        part = placed / sizes.total()
        sets[level] = (
            "test" if part < TEST_PART else "dev" if part < DEV_UNTIL else "train"
        )
        placed += sizes[level]
    return sets


def drop_shared_sentences(
    sentences: dict[Recording, dict[str, str]], set_of: dict[str, str]
) -> tuple[list[Recording], list[tuple[Recording, str, str]]]:
    """Drop from dev and train what has a sentence of test, and from train that of dev.

    Args:
        sentences: transcript and translations of each recording, by language. They are
            compared after normalisation.
        set_of: set of each level.

    Returns:
        The other recordings, and the dropped ones with reason and detail.
    """
    held_out: dict[tuple[str, str], str] = {}
    kept, dropped = [], []
    for name in ("test", "dev", "train"):
        new = []
        for recording, texts in sentences.items():
            if set_of[recording.level] != name:
                continue
            own = [(lang, ctc_text(text, lang)) for lang, text in texts.items()]
            shared = next((one for one in own if one in held_out), None)
            if shared:
                reason = f"sentence also in {held_out[shared]}"
                dropped.append((recording, reason, ": ".join(shared)))
            else:
                kept.append(recording)
                new += own
        held_out |= dict.fromkeys(new, name)
    return kept, dropped


def _check_audio(
    recording: Recording, max_seconds: float
) -> tuple[tuple[str, str] | None, float]:
    """Return ((reason, detail) or None, seconds) for a recording with a text."""
    from speechllm.audio.io import audio_info

    assert recording.line is not None
    try:
        seconds = audio_info(recording.path).seconds
    except UserError as error:
        return ("unreadable audio", str(error)), 0.0
    if seconds > max_seconds:
        return ("too long", f"{seconds:.2f} s > {max_seconds:g} s"), seconds
    if len(recording.line.text) > _MAX_CHARACTERS_PER_SECOND * seconds:
        detail = f"{len(recording.line.text)} characters in {seconds:.2f} s"
        return ("text does not fit the audio", detail), seconds
    return None, seconds


def _empty_tables() -> dict[str, dict[str, str]]:
    names = ["wav.scp", "utt2spk", "utt2lang", "utt2dur", "text"]
    names += [f"text.{language}" for language in ("en", *_WRITTEN)]
    return {name: {} for name in names}


def _add(
    tables: dict[str, dict[str, str]],
    recording: Recording,
    seconds: float,
    texts: dict[str, str],
) -> None:
    utterance, language = recording.utterance, recording.language
    if utterance in tables["text"]:
        raise UserError(
            f"{recording.path}: two recordings have the utterance id {utterance}; "
            "rename one"
        )
    tables["wav.scp"][utterance] = os.path.abspath(recording.path)
    tables["utt2spk"][utterance] = recording.speaker
    tables["utt2lang"][utterance] = language
    tables["utt2dur"][utterance] = f"{seconds:.3f}"
    tables["text"][utterance] = spell_numbers(texts[language], language)
    for other, text in texts.items():
        if other != language:
            tables[f"text.{other}"][utterance] = text
