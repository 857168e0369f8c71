"""ReazonSpeech: Japanese television with its captions, the training set of Nue-ASR.

Source: https://huggingface.co/datasets/reazon-research/reazonspeech. Licence:
CDLA-Sharing-1.0, for use under Article 30-4 of the Japanese copyright act only. Layout
of the release::

    <root>/<size>.tsv  or  <root>/tsv/<size>.tsv     <name><TAB><text>, no header
    <root>/<shard>.tar  or  <root>/data/<shard>.tar  its members are the <name>s

with the sizes tiny, small, medium, large and all, shards numbered in hexadecimal
(000.tar, …), and names such as ``000/0123456789.flac`` (16 kHz, mono). Clips that are
not in the TSV belong to another size. If the shards are already unpacked, the clips are
in ``<root>`` or ``<root>/data`` under their names.

Output: data dirs ``train``, ``dev`` and ``test``. Utterance ids are ``rs-<name>``
without extension and with "_" for "/"; speakers are unknown, so that every utterance is
its own speaker. In the order of the names, the first 1,000 utterances are dev, the next
100 test, the rest train: the sizes of ReazonSpeech's ESPnet recipe and of lhotse (which
take them in the order of the archives, not of the TSV).

The utterances that Nue-ASR was tested on are unknown to us.
"""

from __future__ import annotations

import argparse
import os
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from speechllm.corpora._read_speech import STAGE, Utterance, summary, write_sets
from speechllm.corpora._texts import clean_text, read_lines
from speechllm.data.kaldi_table import Dropped
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open, unpack_tar

SIZES = ("tiny", "small", "medium", "large", "all")
DEV_UTTERANCES, TEST_UTTERANCES = 1000, 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reazonspeech_dir", type=Path, required=True, help="folder of the download"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("data"), help="folder of the data dirs"
    )
    parser.add_argument("--size", choices=SIZES, default="all", help="TSV to read")
    parser.add_argument(
        "--unpack_dir",
        type=Path,
        default=Path("downloads/reazonspeech"),
        help="folder to unpack shards into; needs as much space as the shards",
    )
    parser.add_argument("--dev_utterances", type=int, default=DEV_UTTERANCES)
    parser.add_argument("--test_utterances", type=int, default=TEST_UTTERANCES)


def run(args: argparse.Namespace) -> None:
    results = prepare_reazonspeech(
        args.reazonspeech_dir,
        args.output,
        args.size,
        args.unpack_dir,
        args.dev_utterances,
        args.test_utterances,
    )
    for name, (count, dropped) in results.items():
        print(summary(args.output / name, count, dropped))


def prepare_reazonspeech(
    reazonspeech_dir: str | Path,
    output_dir: str | Path,
    size: str = "all",
    unpack_dir: str | Path = "downloads/reazonspeech",
    dev_utterances: int = DEV_UTTERANCES,
    test_utterances: int = TEST_UTTERANCES,
) -> dict[str, tuple[int, list[Dropped]]]:
    """Write ``train``, ``dev`` and ``test`` below ``output_dir``, all or none.

    Returns:
        For each data dir, the number of utterances and the dropped ones (all of them
        are listed for ``train``).

    Raises:
        UserError: the TSV or the audio is missing, a shard cannot be unpacked, a name
            is listed twice, or there are too few utterances for three sets.
    """
    if min(dev_utterances, test_utterances) < 1:
        raise UserError(
            f"{dev_utterances} dev and {test_utterances} test utterances: each needs "
            "at least 1"
        )
    root = Path(reazonspeech_dir)
    table = _find_table(root, size)
    folder = _find_clips(root, Path(unpack_dir))
    dropped: list[Dropped] = []
    utterances = sorted(_read_table(table, folder, dropped))
    if len(utterances) <= dev_utterances + test_utterances:
        first = f", first: {dropped[0].reason} {dropped[0].detail}" if dropped else ""
        raise UserError(
            f"{table}: {len(utterances)} utterances are too few for {dev_utterances} "
            f"dev, {test_utterances} test and some train utterances "
            f"({len(dropped)} were dropped{first}); reduce --dev_utterances and "
            "--test_utterances"
        )
    output_dir, stream = Path(output_dir), iter(utterances)
    sets = {
        output_dir / "dev": (islice(stream, dev_utterances), []),
        output_dir / "test": (islice(stream, test_utterances), []),
        output_dir / "train": (stream, dropped),
    }
    return write_sets(sets, "ja")


def unpack_shard(shard: Path, folder: Path) -> None:
    """Unpack a tar file once; a marker in ``folder`` records that it is complete.

    Raises:
        UserError: the file is damaged or incomplete, or a member would be written
            outside ``folder``.
    """
    if not shard.is_file():
        raise UserError(f"{shard}: not a file; download it again")
    marker = folder / f".{shard.stem}.done"
    state = f"{shard.stat().st_size}\n"
    if marker.is_file() and marker.read_text() == state:
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        unpack_tar(shard, folder)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(
            f"{shard}: cannot be unpacked ({error}); download it again"
        ) from None
    with atomic_open(marker) as stream:
        stream.write(state)


def _find_table(root: Path, size: str) -> Path:
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder of ReazonSpeech")
    places = _tables(root, size)
    for path in places:
        if path.is_file():
            return path
    sizes = [name for name in SIZES if any(p.is_file() for p in _tables(root, name))]
    raise UserError(
        f"{places[0]}: not found, nor {places[1]}; {root} has the TSV of: "
        f"{', '.join(sizes) or 'no size'}"
    )


def _tables(root: Path, size: str) -> list[Path]:
    return [root / f"{size}.tsv", root / "tsv" / f"{size}.tsv"]


def _find_clips(root: Path, unpack_dir: Path) -> Path:
    """Return the folder that the clips' names are relative to; unpack shards."""
    data = root / "data" if (root / "data").is_dir() else root
    shards = sorted(data.glob("*.tar"))
    if not shards:
        if not any(entry.is_dir() and entry.name != "tsv" for entry in data.iterdir()):
            raise UserError(
                f"{data}: neither shards (000.tar, …) nor their unpacked folders; "
                "download the shards"
            )
        return data
    from tqdm import tqdm

    for shard in tqdm(shards, desc="unpack shards", unit="tar", mininterval=1):
        unpack_shard(shard, unpack_dir)
    return unpack_dir


def _read_table(
    table: Path, folder: Path, dropped: list[Dropped]
) -> Iterator[Utterance]:
    folder = folder.resolve()
    for number, line in enumerate(read_lines(table), 1):
        if not line:
            continue
        name, _, text = line.partition("\t")
        name = clean_text(name).removeprefix("./")
        text = clean_text(text)
        stem = name.rpartition(".")[0] or name
        utterance = "rs-" + stem.replace("/", "_")
        if "\t" not in line or not name or len(name.split()) != 1:
            problem = "expected <name><TAB><text>"
            place = f"{table.name}:{number}"
            dropped.append(Dropped(place, STAGE, "bad row", problem))
        elif not text:
            dropped.append(Dropped(utterance, STAGE, "empty text", f"line {number}"))
        elif not os.path.isfile(path := f"{folder}/{name}"):
            dropped.append(Dropped(utterance, STAGE, "no audio file", path))
        else:
            yield Utterance(utterance, path, utterance, text)
