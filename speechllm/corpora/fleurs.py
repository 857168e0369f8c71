"""FLEURS: the same 2,009 sentences read in 102 languages (Conneau et al. 2022).

Source: https://huggingface.co/datasets/google/fleurs, arXiv 2205.12446. Licence: CC BY
4.0. Layout of the dataset's repository, for each language (``en_us``, ``de_de``)::

    data/<language>/<split>.tsv             no header
    data/<language>/audio/<split>.tar.gz    its members are <split>/<file>.wav

with the splits ``train``, ``dev`` and ``test``; 16 kHz, mono. The columns of the TSV
are the sentence's number, the file, the text as written, the text in lower case without
punctuation, its characters, the number of samples, and the speaker's gender. Without
the folder ``data`` (as in Google's older archives), and with archives that are already
unpacked, the corpus is read, too. The sentences come from FLoRes; a number is the same
sentence in all languages, and many are read by several speakers.

Output: data dirs ``train``, ``dev`` and ``test`` with the speech of the source
languages, the text as written in ``text``, and the same sentence in other languages in
``text.<lang>``. Languages are given as ``en`` or ``en_us``; in data dirs they have the
code without the country; Mandarin is ``zh``, Norwegian ``no``. Utterance ids are
``<lang>-<sentence>-<file>``; speakers are unknown, so that every utterance is its own
speaker.

Dropped and listed in ``dropped.tsv``: bad rows, rows without text or file, and training
utterances whose sentence is in dev or test of any source language, dev utterances
whose sentence is in test. Utterances without a translation are kept and listed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from speechllm.corpora._download import download, is_unpacked, unpack_tar
from speechllm.corpora._read_speech import STAGE
from speechllm.corpora._texts import clean_text, read_lines
from speechllm.data.data_dir import write_spk2utt
from speechllm.data.kaldi_table import DATA_DIR, Dropped, write_dropped, write_table
from speechllm.utils.errors import UserError, reason_of
from speechllm.utils.folders import atomic_directory

REPOSITORY = "google/fleurs"
REVISION = "70bb2e84b976b7e960aa89f1c648e09c59f894dd"
SPLITS = ("train", "dev", "test")
#: Rows of train, dev and test by the dataset's card, for the languages looked up.
COUNTS = {
    "en_us": (2602, 394, 647),
    "de_de": (2987, 363, 862),
    "ja_jp": (2292, 266, 650),
    "ko_kr": (2307, 226, 382),
}
# Other languages: the code without the country.
_SHORT = {"cmn_hans_cn": "zh", "nb_no": "no"}
_COLUMNS = 7


class Row(NamedTuple):
    """A recording: number of the sentence, file name and text."""

    sentence: str
    file: str
    text: str


@dataclass
class _Set:
    """The tables of a data dir."""

    tables: dict[str, dict[str, str]] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)
    sentences: set[str] = field(default_factory=set)

    def write(self, table: str, key: str, value: str) -> None:
        self.tables.setdefault(table, {})[key] = value

    def drop(self, key: str, reason: str, detail: str = "") -> None:
        self.dropped.append(Dropped(key, STAGE, reason, detail))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fleurs_dir",
        type=Path,
        required=True,
        help="folder that holds data/en_us, … or en_us, …",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("data"), help="folder of the data dirs"
    )
    parser.add_argument(
        "--src_lang", nargs="+", required=True, help="spoken languages, such as en"
    )
    parser.add_argument(
        "--tgt_lang", nargs="*", default=[], help="languages of translations"
    )
    parser.add_argument(
        "--unpack_dir",
        type=Path,
        default=Path("downloads/fleurs"),
        help="folder to unpack the archives into",
    )
    parser.add_argument(
        "--download", action="store_true", help="download what is missing"
    )


def run(args: argparse.Namespace) -> None:
    if args.download:
        download_fleurs(args.fleurs_dir, args.src_lang, args.tgt_lang, args.unpack_dir)
    results = prepare_fleurs(
        args.fleurs_dir, args.output, args.src_lang, args.tgt_lang, args.unpack_dir
    )
    print("| set | utterances | left out |\n| --- | ---: | ---: |")
    for name, (count, dropped) in results.items():
        print(f"| {name} | {count:,} | {len(dropped):,} |")


def find_language(name: str) -> str:
    """Return FLEURS's code of a language, such as ``en_us`` for ``en``.

    Raises:
        UserError: FLEURS does not have the language.
    """
    from lhotse.recipes.fleurs import DEFAULT_LANGUAGES

    for code in DEFAULT_LANGUAGES:
        if name in (code, short_code(code), code.split("_")[0]):
            return str(code)
    known = " ".join(sorted(map(short_code, DEFAULT_LANGUAGES)))
    raise UserError(f"FLEURS has no language {name!r}; there are: {known}")


def short_code(code: str) -> str:
    """Return the code of a language in data dirs and tasks, such as ``en``."""
    return _SHORT.get(code) or code.split("_")[0]


def download_fleurs(
    folder: str | Path,
    sources: Iterable[str],
    targets: Iterable[str] = (),
    unpack_dir: str | Path = "downloads/fleurs",
) -> None:
    """Download tables and audio of the sources, and the tables of the targets.

    The hub states size and SHA-256 of the archives, which are checked. If all is
    there, the hub is not asked.

    Raises:
        UserError: the hub cannot be reached or lacks a file, or a download fails.
    """
    from huggingface_hub import HfApi, constants, hf_hub_url

    folder = Path(folder)
    speech = list(dict.fromkeys(map(find_language, sources)))
    texts = list(dict.fromkeys([*speech, *map(find_language, targets)]))
    tables = [f"data/{code}/{split}.tsv" for code in texts for split in SPLITS]
    wanted = [table for table in tables if not (folder / table).is_file()]
    for code in speech:
        for split in SPLITS:
            archive = f"data/{code}/audio/{split}.tar.gz"
            unpacked = folder / "data" / code / "audio" / split
            there = unpacked.is_dir() and not (folder / archive).is_file()
            if not there and not is_unpacked(
                archive, _unpacked(Path(unpack_dir), code)
            ):
                wanted.append(archive)
    if not wanted:
        return
    place = f"{REPOSITORY} on {constants.ENDPOINT}"
    try:
        found = HfApi().get_paths_info(
            REPOSITORY, wanted, repo_type="dataset", revision=REVISION
        )
    except Exception as error:  # depends on the HTTP library
        reason = reason_of(error) or type(error).__name__
        raise UserError(
            f"{place}: cannot be read ({reason}); check the network, or name a mirror "
            "in HF_ENDPOINT"
        ) from None
    files = {info.path: info for info in found}
    for name in wanted:
        if name not in files:
            raise UserError(f"{place}: has no {name} in revision {REVISION[:8]}")
        info = files[name]
        lfs = getattr(info, "lfs", None)
        download(
            hf_hub_url(REPOSITORY, name, repo_type="dataset", revision=REVISION),
            folder / name,
            size=info.size,
            sha256=lfs.sha256 if lfs else None,
        )


def prepare_fleurs(
    fleurs_dir: str | Path,
    output_dir: str | Path,
    sources: Iterable[str],
    targets: Iterable[str] = (),
    unpack_dir: str | Path = "downloads/fleurs",
) -> dict[str, tuple[int, list[Dropped]]]:
    """Write ``train``, ``dev`` and ``test`` below ``output_dir``, all or none.

    Args:
        fleurs_dir: folder with ``data/<language>`` or ``<language>``.
        output_dir: folder of the data dirs.
        sources: spoken languages.
        targets: languages of the translations.
        unpack_dir: folder that archives are unpacked into.

    Returns:
        For each data dir, the number of utterances and the dropped ones.

    Raises:
        UserError: FLEURS has no such language, a table or the audio of a split is
            missing, a table has a bad row, or no utterance of a split is left.
    """
    root, speech = Path(fleurs_dir), list(dict.fromkeys(map(find_language, sources)))
    texts = {
        code: _read_texts(_language_folder(root, code))
        for code in dict.fromkeys(map(find_language, targets))
    }
    sets = {split: _Set() for split in SPLITS}
    held_out: set[str] = set()
    for split in reversed(SPLITS):  # training last
        one = sets[split]
        for code in speech:
            folder = _language_folder(root, code)
            table = folder / f"{split}.tsv"
            rows = list(_read_rows(table, one.drop))
            _compare_count(table, code, split, len(rows))
            audio = _find_audio(folder, code, split, Path(unpack_dir))
            _add_rows(one, code, rows, audio, held_out)
            _add_translations(one, code, rows, texts)
        if not one.tables:
            raise UserError(
                f"{root}: no utterance of {split} is left{_first(one.dropped)}"
            )
        held_out |= one.sentences
    with ExitStack() as stack:
        for split, one in sets.items():
            new = stack.enter_context(
                atomic_directory(Path(output_dir) / split, DATA_DIR, [root])
            )
            for code in texts:  # also where no sentence has a translation
                one.tables.setdefault(f"text.{short_code(code)}", {})
            for name, table in one.tables.items():
                write_table(new / name, dict(sorted(table.items())))
            write_spk2utt(new)
            write_dropped(new, one.dropped)
    return {
        split: (len(one.tables["text"]), one.dropped) for split, one in sets.items()
    }


def _add_rows(
    one: _Set, code: str, rows: list[Row], audio: Path, held_out: set[str]
) -> None:
    """Add the utterances of a language to a set."""
    there = {path.name for path in audio.iterdir()}
    language = short_code(code)
    for row in rows:
        key = _utterance(code, row)
        if key in one.tables.get("text", {}):
            one.drop(key, "listed twice", row.file)
        elif row.file not in there:
            one.drop(key, "no audio file", str(audio / row.file))
        elif not row.text:
            one.drop(key, "empty text", row.file)
        elif row.sentence in held_out:
            one.drop(key, "sentence in another set", row.sentence)
        else:
            one.sentences.add(row.sentence)
            one.write("wav.scp", key, str(audio / row.file))
            one.write("text", key, row.text)
            one.write("utt2spk", key, key)
            one.write("utt2lang", key, language)


def _add_translations(
    one: _Set, code: str, rows: list[Row], texts: dict[str, dict[str, str]]
) -> None:
    """Add the translations of a language's utterances to a set."""
    for target, sentences in texts.items():
        if target == code:
            continue
        for row in rows:
            key = _utterance(code, row)
            if key not in one.tables.get("text", {}):
                continue
            if row.sentence in sentences:
                one.write(f"text.{short_code(target)}", key, sentences[row.sentence])
            else:
                one.drop(key, f"no translation: {short_code(target)}", row.sentence)


def _utterance(code: str, row: Row) -> str:
    return f"{short_code(code)}-{row.sentence.zfill(4)}-{row.file.rpartition('.')[0]}"


def _language_folder(root: Path, code: str) -> Path:
    """Return the folder of a language.

    Raises:
        UserError: it is missing.
    """
    for folder in (root / "data" / code, root / code):
        if folder.is_dir():
            return folder
    raise UserError(
        f"{root / 'data' / code}: no such folder, nor {root / code}; download the "
        f"language {code} of FLEURS"
    )


def _read_rows(path: Path, drop: Callable[[str, str, str], None]) -> Iterator[Row]:
    """Read a table, whose quotation marks are part of the texts.

    Args:
        drop: called with place, reason and detail of a bad row.

    Raises:
        UserError: it is missing or not UTF-8.
    """
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        place, fields = f"{path.parent.name}/{path.name}:{number}", line.split("\t")
        if len(fields) != _COLUMNS:
            problem = f"{len(fields)} columns instead of {_COLUMNS}"
            drop(place, "bad row", problem)
            continue
        sentence, file, written, plain = map(clean_text, fields[:4])
        if not sentence.isdecimal() or len(file.split()) != 1 or "/" in file:
            problem = f"no number of a sentence or no file: {sentence!r}, {file!r}"
            drop(place, "bad row", problem)
            continue
        yield Row(sentence, file, written or plain)


def _read_texts(folder: Path) -> dict[str, str]:
    """Return the text of each sentence of a language, from all splits."""
    texts: dict[str, str] = {}
    for split in SPLITS:
        # a sentence of a bad row is listed as one without a translation
        for row in _read_rows(folder / f"{split}.tsv", lambda *row: None):
            if row.text:
                texts.setdefault(row.sentence, row.text)
    return texts


def _unpacked(unpack_dir: Path, code: str) -> Path:
    return unpack_dir / "data" / code / "audio"


def _find_audio(folder: Path, code: str, split: str, unpack_dir: Path) -> Path:
    """Return the folder of a split's files; unpack its archive if needed.

    Raises:
        UserError: neither folder nor archive is there, or it cannot be unpacked.
    """
    audio = folder / "audio"
    archive, target = audio / f"{split}.tar.gz", _unpacked(unpack_dir, code)
    ours = audio.resolve() == target.resolve()
    if (audio / split).is_dir() and not (ours and archive.is_file()):
        return (audio / split).resolve()
    if not archive.is_file() and not is_unpacked(archive, target):
        raise UserError(
            f"{archive}: not found, nor {audio / split}; download the audio of {code}"
        )
    unpack_tar(archive, target)
    if not (target / split).is_dir():
        raise UserError(f"{archive}: has no folder {split}; download it again")
    return (target / split).resolve()


def _compare_count(path: Path, code: str, split: str, rows: int) -> None:
    """Warn if a table has another number of rows than the dataset's card says."""
    if code in COUNTS:
        expected = COUNTS[code][SPLITS.index(split)]
        if rows != expected:
            print(
                f"warning: {path}: {rows:,} rows instead of the {expected:,} of the "
                "dataset's card; results may not be comparable",
                file=sys.stderr,
            )


def _first(dropped: list[Dropped]) -> str:
    if not dropped:
        return ""
    entry = dropped[0]
    return f" ({entry.id}: {entry.reason}: {entry.detail})"
