"""CoVoST 2 (Wang et al. 2020): translations of Common Voice 4.0.

From 21 languages into English and from English into 15. Licence: CC0. Layout: the
translations of each direction, and a Common Voice release for each spoken language::

    covost_v2.en_de.tsv          columns path, translation, split (and others)
    en/clips/common_voice_en_18855161.mp3
    en/validated.tsv             columns client_id, path, sentence (and others)
    en/{invalidated,other}.tsv   the same, optional

Release 4.0 (2019-12-10) has all clips. Later ones have most of them under the same
names, but some have got other votes: clips that are not in ``validated.tsv`` are looked
up in ``invalidated.tsv`` and ``other.tsv``. A set is refused if less than ``min_share``
of its clips are found; ``missing_clips.tsv`` lists the others.

The translations are read as by CoVoST's own script: a quotation mark is an ordinary
character, a backslash escapes the next one. So references are the same as in published
results, including quotation marks that are doubled in the file. Its splits are kept:
``train`` and ``train_covost`` are train, ``dev`` and ``test`` are dev and test, all
other rows are ignored.

Output: data dirs ``train``, ``dev`` and ``test`` with the clips of all spoken
languages, the transcript in ``text`` and translations in ``text.<lang>``. Utterance ids
are ``<speaker>-<clip>``; the speaker is the beginning of Common Voice's client id.
Languages have two letters: zh-CN is ``zh``, sv-SE is ``sv``.

Dropped and listed in ``dropped.tsv``: clips without a file, clips that are not in the
release's TSV files, clips in two sets (they are kept in the test or dev set), and
unreadable rows. Clips that cannot be decoded are dropped when audio is formatted.
Translations that are empty, marked ``REMOVE`` by their translators, or have lost
characters are listed but their clips are kept; in ``dev`` and ``test`` only empty
translations are removed, so that scores remain comparable.
"""

from __future__ import annotations

import argparse
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from speechllm.corpora._clip_share import (
    MIN_SHARE,
    Share,
    check_min_share,
    check_shares,
)
from speechllm.corpora._common_voice_tsv import (
    SPEAKER_LENGTH,
    clip_name,
    read_clips,
)
from speechllm.corpora._texts import clean_text, is_damaged, read_lines
from speechllm.data.data_dir import write_spk2utt
from speechllm.data.kaldi_table import (
    DATA_DIR,
    Dropped,
    iterate_table,
    read_dropped,
    write_dropped,
    write_table,
)
from speechllm.utils.errors import UserError
from speechllm.utils.folders import atomic_directory

SETS = ("train", "dev", "test")
# fmt: off
INTO_ENGLISH = (
    "fr", "de", "es", "ca", "it", "ru", "zh-CN", "pt", "fa", "et", "mn", "nl", "tr",
    "ar", "sv-SE", "lv", "sl", "ta", "ja", "id", "cy",
)
FROM_ENGLISH = (
    "de", "tr", "fa", "sv-SE", "mn", "zh-CN", "cy", "ca", "sl", "et", "id", "ar", "ta",
    "lv", "ja",
)
# fmt: on
_SET_OF_SPLIT = {"train": 0, "train_covost": 0, "dev": 1, "test": 2}
_TABLES = ("validated.tsv", "invalidated.tsv", "other.tsv")
_REMOVE = "REMOVE"  # the translators' mark for sentences to remove
_ESCAPED = re.compile(r"\\(.)")
_CHARACTERS = re.compile(r"\\(.)|([^\\])")  # escaped, plain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, default=Path("data"), help="folder of the data dirs"
    )
    parser.add_argument(
        "--covost2_dir", type=Path, required=True, help="folder with covost_v2.*.tsv"
    )
    parser.add_argument(
        "--common_voice_dir",
        type=Path,
        help="folder with a Common Voice release in en/, fr/, … [--covost2_dir]",
    )
    parser.add_argument(
        "--src_lang", nargs="+", required=True, help="spoken languages, such as en fr"
    )
    parser.add_argument(
        "--tgt_lang", nargs="+", required=True, help="target languages, such as de"
    )
    parser.add_argument(
        "--min_share",
        type=float,
        default=MIN_SHARE,
        help="least share of each set's clips that the release must have "
        f"[{MIN_SHARE}]",
    )


def run(args: argparse.Namespace) -> None:
    lines = prepare_covost2(
        args.covost2_dir,
        args.common_voice_dir or args.covost2_dir,
        args.output,
        choose_directions(args.src_lang, args.tgt_lang),
        args.min_share,
    )
    print("| set | utterances | left out |\n| --- | ---: | ---: |")
    for name in SETS:
        utterances = sum(1 for _ in iterate_table(args.output / name / "text"))
        dropped = len(read_dropped(args.output / name))
        print(f"| {name} | {utterances} | {dropped} |")
    print("\n".join(lines))


def choose_directions(
    sources: Iterable[str], targets: Iterable[str]
) -> list[tuple[str, str]]:
    """List the directions of CoVoST 2 between two lists of languages.

    Raises:
        UserError: a language is in none of them.
    """
    sources, targets = list(dict.fromkeys(sources)), list(dict.fromkeys(targets))
    known = {("en", language) for language in FROM_ENGLISH}
    known |= {(language, "en") for language in INTO_ENGLISH}
    chosen = [(s, t) for s in sources for t in targets if (s, t) in known]
    for place, languages in enumerate((sources, targets)):
        used = {direction[place] for direction in chosen}
        for language in languages:
            if language not in used:
                raise UserError(
                    f"CoVoST 2 has no direction {' '.join(sources)} -> "
                    f"{' '.join(targets)} for {language}; it goes from English into "
                    f"{' '.join(FROM_ENGLISH)}, and into English from "
                    f"{' '.join(INTO_ENGLISH)}"
                )
    return chosen


def prepare_covost2(
    covost2_dir: str | Path,
    common_voice_dir: str | Path,
    output_dir: str | Path,
    directions: Iterable[tuple[str, str]],
    min_share: float = MIN_SHARE,
) -> list[str]:
    """Write ``train``, ``dev`` and ``test`` below ``output_dir``, all or none.

    Args:
        covost2_dir: folder of the translations.
        common_voice_dir: folder of a Common Voice release, with a folder per language.
        output_dir: folder of the data dirs.
        directions: pairs such as ``("en", "de")``.
        min_share: least share of the clips of each set and spoken language that the
            release must have.

    Returns:
        One line about the rows found of each set and spoken language, and others.

    Raises:
        UserError: a file, a column or too many clips are missing, or a language has no
            clip.
    """
    check_min_share(min_share)
    directions = list(directions)
    covost2_dir, common_voice_dir = Path(covost2_dir), Path(common_voice_dir)
    translations = {
        direction: _translations_path(covost2_dir, *direction)
        for direction in directions
    }
    sources = list(dict.fromkeys(source for source, _ in directions))
    for source in sources:
        _check_common_voice(common_voice_dir, source)
    dropped: list[list[Dropped]] = [[] for _ in SETS]
    sets_of = {
        source: _read_splits(
            [path for d, path in translations.items() if d[0] == source],
            two_letters(source),
            dropped,
        )
        for source in sources
    }
    with ExitStack() as stack:
        folders = [
            stack.enter_context(
                atomic_directory(
                    Path(output_dir) / name, DATA_DIR, [covost2_dir, common_voice_dir]
                )
            )
            for name in SETS
        ]
        utterances, shares, lines = _write_speech(
            folders, common_voice_dir, sets_of, dropped
        )
        lines = check_shares(common_voice_dir, output_dir, shares, min_share) + lines
        for target in dict.fromkeys(target for _, target in directions):
            paths = [path for d, path in translations.items() if d[1] == target]
            _write_translations(folders, target, paths, utterances, dropped)
        for folder, name, entries in zip(folders, SETS, dropped, strict=True):
            write_dropped(folder, entries)
            if os.path.getsize(folder / "text") == 0:
                first = f"; first {entries[0].reason}: {entries[0].detail}"
                raise UserError(
                    f"{common_voice_dir}: no clip of the set {name} is left"
                    + (first if entries else "")
                )
    return lines


def two_letters(language: str) -> str:
    """Return the two-letter code of a language: ``zh`` for ``zh-CN``."""
    return language.split("-")[0]


def read_translations(
    path: str | Path, problems: list[str] | None = None
) -> Iterator[tuple[str, str, str]]:
    """Yield (clip, translation, split) of each row, as CoVoST's own script reads them.

    Args:
        path: a TSV of CoVoST 2.
        problems: list that receives ``<line>: <problem>`` for rows that lack fields and
            are skipped.

    Raises:
        UserError: the file does not exist, lacks a column, or is not UTF-8.
    """
    rows = map(_fields, read_lines(path))
    header = [name.lstrip("\ufeff").strip() for name in next(rows, [])]
    columns = []
    for name in ("path", "translation", "split"):
        if name not in header:
            raise UserError(
                f"{path}: no column {name!r}, only {', '.join(header) or 'nothing'}; "
                "unpack it again"
            )
        columns.append(header.index(name))
    for number, row in enumerate(rows, 2):
        if len(row) == len(header):
            clip, translation, split = (row[place] for place in columns)
            yield clip.strip(), translation, split.strip()
        elif row and problems is not None:
            problems.append(
                f"{number}: {len(row)} fields, the header has {len(header)}"
            )


def _fields(line: str) -> list[str]:
    """Split a line at its tabs; a backslash escapes the next character."""
    if "\\" not in line:
        return line.split("\t") if line else []
    fields = [""]
    for escaped, plain in _CHARACTERS.findall(line):
        if plain == "\t":
            fields.append("")
        else:
            fields[-1] += escaped or plain
    return fields


def _translations_path(covost2_dir: Path, source: str, target: str) -> Path:
    path = covost2_dir / f"covost_v2.{source}_{target}.tsv"
    if not path.is_file():
        there = sorted(p.name for p in covost2_dir.glob("covost_v2.*.tsv"))
        found = ", ".join(there) or "no covost_v2.*.tsv"
        raise UserError(
            f"{path}: not found; {covost2_dir} contains {found}. Unpack covost_v2."
            f"{source}_{target}.tsv.tar.gz there"
        )
    return path


def _check_common_voice(common_voice_dir: Path, source: str) -> None:
    for path in (
        common_voice_dir / source / "validated.tsv",
        common_voice_dir / source / "clips",
    ):
        if not path.exists():
            raise UserError(
                f"{path}: not found; unpack a Common Voice release of {source} into "
                f"{common_voice_dir / source}; 4.0 (2019-12-10) has all clips, later "
                "ones most"
            )


def _read_splits(
    paths: Iterable[Path], language: str, dropped: list[list[Dropped]]
) -> dict[str, int]:
    """Assign each clip to a set; a clip in two sets is kept in test or dev."""
    set_of: dict[str, int] = {}
    for path in paths:
        problems: list[str] = []
        for clip, _, split in read_translations(path, problems):
            place = _SET_OF_SPLIT.get(split)
            if place is None:
                continue
            before = set_of.setdefault(clip, place)
            if before != place:
                set_of[clip] = max(before, place)
                detail = f"{clip} is in {SETS[max(before, place)]} too; {path.name}"
                dropped[min(before, place)].append(
                    _drop(clip, "in two sets", detail, language)
                )
        dropped[0] += [
            _drop(f"{path.name}:{problem.split(':')[0]}", "bad row", problem, language)
            for problem in problems
        ]
    return set_of


def _write_speech(
    folders: list[Path],
    common_voice_dir: Path,
    sets_of: dict[str, dict[str, int]],
    dropped: list[list[Dropped]],
) -> tuple[list[dict[str, str]], list[Share], list[str]]:
    """Write all tables except translations; empties ``sets_of`` to save memory.

    Args:
        sets_of: spoken language -> clip -> number of its set.

    Returns:
        For each set, clip -> utterance; the share of each set and language; and one
        line for each language with clips that are no longer validated.
    """
    utterances: list[dict[str, str]] = [{} for _ in SETS]
    texts: list[dict[str, str]] = [{} for _ in SETS]
    spoken: list[dict[str, str]] = [{} for _ in SETS]  # utterance -> language
    shares, lines = [], []
    for source, set_of in sets_of.items():
        clips = _clips_folder(common_voice_dir, source)
        language = two_letters(source)
        present = {entry.name for entry in os.scandir(clips)}
        rows = Counter(set_of.values())
        missing: list[list[Dropped]] = [[] for _ in SETS]
        origins: Counter[str] = Counter()
        for name, row in _listed_clips(common_voice_dir / source, set_of, dropped[0]):
            clip = clip_name(row["path"])
            place = set_of.pop(clip, None)
            if place is None:
                continue
            stem = clip.removesuffix(".mp3")
            utterance = f"{row['client_id'][:SPEAKER_LENGTH] or stem}-{stem}"
            if clip not in present:
                lost = _drop(utterance, "no audio file", clip, language)
                missing[place].append(lost)
                continue
            origins[name] += 1
            utterances[place][clip] = utterance
            spoken[place][utterance] = source
            texts[place][utterance] = clean_text(_ESCAPED.sub(r"\1", row["sentence"]))
        if not origins:
            raise UserError(
                f"{clips}: contains none of CoVoST 2's clips in "
                f"{common_voice_dir / source / _TABLES[0]}; unpack a Common Voice "
                f"release of {source} there; 4.0 (2019-12-10) has all clips"
            )
        for clip, place in set_of.items():
            missing[place].append(_drop(clip, "not in the release", "", language))
        set_of.clear()
        for place, name in enumerate(SETS):
            dropped[place] += missing[place]
            if rows[place]:
                label = name if len(sets_of) == 1 else f"{name}, {source}"
                shares.append(Share(label, rows[place], missing[place]))
        lines += [
            f"{source}: {count:,} of these clips are in {name} of the release"
            for name, count in origins.items()
            if name != _TABLES[0]
        ]
    for folder, table in zip(folders, texts, strict=True):
        write_table(folder / "text", table)
        table.clear()
    for place, folder in enumerate(folders):
        _write_origin(folder, utterances[place], spoken[place], common_voice_dir)
        spoken[place].clear()
    return utterances, shares, lines


def _listed_clips(
    folder: Path, wanted: dict[str, int], dropped: list[Dropped]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (name, row) of a language's TSV files until no clip is wanted any more."""
    columns = ("client_id", "path", "sentence")
    for name in _TABLES:

        def bad_row(number: int, problem: str, name: str = name) -> None:
            line = f"{folder.name}/{name}:{number}"
            language = two_letters(folder.name)
            dropped.append(_drop(line, "bad row", problem, language))

        if wanted and (name == _TABLES[0] or (folder / name).is_file()):
            for row in read_clips(folder / name, columns, bad_row):
                yield name, row


def _write_origin(
    folder: Path,
    utterances: dict[str, str],
    spoken: dict[str, str],
    common_voice_dir: Path,
) -> None:
    """Write ``wav.scp``, ``utt2lang``, ``utt2spk`` and ``spk2utt`` of a set."""
    clips = {
        source: _clips_folder(common_voice_dir, source)
        for source in set(spoken.values())
    }
    files = {
        utterance: f"{clips[spoken[utterance]]}/{clip}"
        for clip, utterance in utterances.items()
    }
    write_table(folder / "wav.scp", files)
    del files
    codes = {utterance: two_letters(source) for utterance, source in spoken.items()}
    write_table(folder / "utt2lang", codes)
    del codes
    speakers = {utterance: utterance.split("-", 1)[0] for utterance in spoken}
    write_table(folder / "utt2spk", speakers)
    del speakers
    write_spk2utt(folder)


def _clips_folder(common_voice_dir: Path, source: str) -> str:
    return os.path.abspath(common_voice_dir / source / "clips")


def _write_translations(
    folders: list[Path],
    target: str,
    paths: list[Path],
    utterances: list[dict[str, str]],
    dropped: list[list[Dropped]],
) -> None:
    """Write ``text.<target>`` of all sets."""
    code = two_letters(target)
    tables: list[dict[str, str]] = [{} for _ in SETS]
    for path in paths:
        for clip, translation, split in read_translations(path):
            place = _SET_OF_SPLIT.get(split)
            utterance = None if place is None else utterances[place].get(clip)
            if utterance is None:
                continue
            text = clean_text(translation)
            if reason := _unusable(text, SETS[place]):
                detail = f"into {code}: {text}"
                language = two_letters(path.name.split(".")[1].split("_")[0])
                dropped[place].append(_drop(utterance, reason, detail, language))
            else:
                tables[place].setdefault(utterance, text)
    for folder, table in zip(folders, tables, strict=True):
        write_table(folder / f"text.{code}", table)


def _unusable(translation: str, name: str) -> str | None:
    """Return why a translation is dropped, or None."""
    if not translation:
        return "empty translation"
    if name != "train":
        return None
    if translation.strip('"') == _REMOVE:
        return "translation marked REMOVE"
    return "damaged translation" if is_damaged(translation) else None


def _drop(identity: str, reason: str, detail: str, language: str) -> Dropped:
    return Dropped(identity, "prepare_data", reason, detail, language)
