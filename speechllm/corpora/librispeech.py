"""LibriSpeech: a thousand hours of English audiobooks (Panayotov et al. 2015).

Source: https://www.openslr.org/12. Licence: CC BY 4.0. Layout of the release, one
archive ``<part>.tar.gz`` per part::

    LibriSpeech/<part>/<speaker>/<chapter>/<speaker>-<chapter>.trans.txt
    LibriSpeech/<part>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac

with the parts train-clean-100, train-clean-360, train-other-500, dev-clean, dev-other,
test-clean and test-other; 16 kHz, mono. A line of a transcript is ``<utterance>
<WORDS>``, in capitals without punctuation.

Output, as in ESPnet's recipe: a training set (``train_960`` is all three parts,
``train_clean_460`` the two clean ones, ``train_clean_100`` the first), ``dev``
(dev-clean and dev-other), and ``dev_clean``, ``dev_other``, ``test_clean`` and
``test_other``. Utterance ids and speakers are the corpus's; texts are unchanged.
``PARTS`` has the number of utterances of each part, and a part with another number is
refused.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from speechllm.corpora._download import download, is_unpacked, unpack_tar
from speechllm.corpora._read_speech import STAGE, Utterance, check_root, write_sets
from speechllm.corpora._texts import clean_text, read_lines
from speechllm.data.kaldi_table import Dropped
from speechllm.utils.errors import UserError

URL = "https://www.openslr.org/resources/12"


class Part(NamedTuple):
    """A part of the corpus: its utterances, and bytes and MD5 of its archive."""

    utterances: int
    size: int
    md5: str


# Sizes are those in Kaldi's download_and_untar.sh, MD5 those of openslr's md5sum.txt.
PARTS = {
    "dev-clean": Part(2703, 337926286, "42e2234ba48799c1f50f24a7926300a1"),
    "dev-other": Part(2864, 314305928, "c8d0bcc9cca99d4f8b62fcc847357931"),
    "test-clean": Part(2620, 346663984, "32fa31d27d2e1cad72775fee3f4849a9"),
    "test-other": Part(2939, 328757843, "fb5a50374b501bb3bac4815ee91d3135"),
    "train-clean-100": Part(28539, 6387309499, "2a93770f6d5c6c964bc36631d331a522"),
    "train-clean-360": Part(104014, 23049477885, "c0e676e450a7ff2f54aeade5171606fa"),
    "train-other-500": Part(148688, 30593501606, "d1a0fd59409feb2c614ce4d30c387708"),
}
TRAIN_SETS = {
    "train_960": ("train-clean-100", "train-clean-360", "train-other-500"),
    "train_clean_460": ("train-clean-100", "train-clean-360"),
    "train_clean_100": ("train-clean-100",),
}
_OTHER_SETS = {
    "dev": ("dev-clean", "dev-other"),
    "dev_clean": ("dev-clean",),
    "dev_other": ("dev-other",),
    "test_clean": ("test-clean",),
    "test_other": ("test-other",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--librispeech_dir",
        type=Path,
        required=True,
        help="folder LibriSpeech, or the one that holds it",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("data"), help="folder of the data dirs"
    )
    parser.add_argument("--train_set", choices=TRAIN_SETS, default="train_960")
    parser.add_argument(
        "--download", action="store_true", help="download the parts that are missing"
    )
    parser.add_argument("--url", default=URL, help="address of the archives, a mirror")
    parser.add_argument(
        "--allow_partial",
        action="store_true",
        help="accept parts with another number of utterances than the release",
    )


def run(args: argparse.Namespace) -> None:
    if args.download:
        download_librispeech(args.librispeech_dir, args.train_set, args.url)
    results = prepare_librispeech(
        args.librispeech_dir, args.output, args.train_set, args.allow_partial
    )
    print("| set | utterances | in the release | left out |")
    print("| --- | ---: | ---: | ---: |")
    for name, parts in _sets(args.train_set).items():
        count, dropped = results[name]
        released = sum(PARTS[part].utterances for part in parts)
        print(f"| {name} | {count:,} | {released:,} | {len(dropped):,} |")


def download_librispeech(
    folder: str | Path, train_set: str = "train_960", url: str = URL
) -> None:
    """Download and unpack the parts that a training set and the other sets need.

    Archives stay in ``folder`` and may be removed afterwards.

    Args:
        folder: folder LibriSpeech, or the one that is to hold it.
        train_set: a key of ``TRAIN_SETS``.
        url: address of the archives.

    Raises:
        UserError: a download fails, or an archive differs from the release.
    """
    folder = Path(folder)
    folder = folder.parent if folder.name == "LibriSpeech" else folder
    for part in sorted(_parts(train_set)):
        archive = folder / f"{part}.tar.gz"
        there = (folder / "LibriSpeech" / part).is_dir() and not archive.is_file()
        if there or is_unpacked(archive, folder):
            continue
        address = f"{url.rstrip('/')}/{archive.name}"
        download(address, archive, size=PARTS[part].size, md5=PARTS[part].md5)
        unpack_tar(archive, folder)


def prepare_librispeech(
    librispeech_dir: str | Path,
    output_dir: str | Path,
    train_set: str = "train_960",
    allow_partial: bool = False,
) -> dict[str, tuple[int, list[Dropped]]]:
    """Write the training set and the dev and test sets below ``output_dir``.

    Args:
        train_set: a key of ``TRAIN_SETS``.
        allow_partial: accept parts with another number of utterances.

    Returns:
        For each data dir, the number of utterances and the dropped ones.

    Raises:
        UserError: a part is missing, or its number of utterances is not that of the
            release.
    """
    root = Path(librispeech_dir)
    root = root / "LibriSpeech" if (root / "LibriSpeech").is_dir() else root
    utterances: dict[str, list[Utterance]] = {}
    dropped: dict[str, list[Dropped]] = {}
    for part in _parts(train_set):
        folder = check_root(root, "LibriSpeech", part) / part
        left_out: list[Dropped] = []
        utterances[part] = list(_read_part(folder, left_out))
        dropped[part] = left_out
        if not allow_partial:
            _check_count(folder, len(utterances[part]), left_out)
    return write_sets(
        {
            Path(output_dir) / name: (
                sorted(one for part in parts for one in utterances[part]),
                [one for part in parts for one in dropped[part]],
            )
            for name, parts in _sets(train_set).items()
        },
        "en",
    )


def _sets(train_set: str) -> dict[str, tuple[str, ...]]:
    """Return the parts of each data dir."""
    return {train_set: TRAIN_SETS[train_set], **_OTHER_SETS}


def _parts(train_set: str) -> list[str]:
    """Return the parts of all data dirs, each once."""
    return list(dict.fromkeys(p for parts in _sets(train_set).values() for p in parts))


def _read_part(folder: Path, dropped: list[Dropped]) -> Iterator[Utterance]:
    for transcript in folder.resolve().glob("*/*/*.trans.txt"):
        chapter = transcript.parent
        prefix = f"{chapter.parent.name}-{chapter.name}-"
        files = {entry.name for entry in os.scandir(chapter)}
        for number, line in enumerate(read_lines(transcript), 1):
            key, _, text = clean_text(line).partition(" ")
            if not key:
                continue
            audio = f"{key}.flac"
            if not key.startswith(prefix):
                place = f"{transcript.name}:{number}"
                problem = f"expected an utterance {prefix}…, got {key!r}"
                dropped.append(Dropped(place, STAGE, "bad row", problem))
            elif audio not in files:
                detail = str(chapter / audio)
                dropped.append(Dropped(key, STAGE, "no audio file", detail))
            elif not text:
                dropped.append(Dropped(key, STAGE, "empty text", f"line {number}"))
            else:
                yield Utterance(key, f"{chapter}/{audio}", chapter.parent.name, text)


def _check_count(folder: Path, count: int, dropped: list[Dropped]) -> None:
    """Raise UserError unless a part has the utterances of the release."""
    released = PARTS[folder.name].utterances
    if count == released:
        return
    reason = ""
    if dropped:
        first = dropped[0]
        reason = f" ({len(dropped):,} left out, first {first.id}: {first.reason})"
    raise UserError(
        f"{folder}: {count:,} utterances instead of the {released:,} of the release"
        f"{reason}; unpack {folder.name}.tar.gz again, or accept it with "
        "--allow_partial"
    )
