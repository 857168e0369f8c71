"""ReazonSpeech: Japanese television with its captions, the training set of Nue-ASR.

Source: https://huggingface.co/datasets/reazon-research/reazonspeech, whose terms must
be accepted. Licence: CDLA-Sharing-1.0, for use under Article 30-4 of the Japanese
copyright act only. The files are on the project's own server, in this layout::

    reazonspeech-v2/tsv/<size>.tsv      <name><TAB><text>, no header
    reazonspeech-v2/data/<shard>.tar    its members are the <name>s
    reazonspeech-v1/…                   the same, of version 1 (the paper's)

with the sizes tiny, small, medium, large and all of version 2, small-v1, medium-v1 and
all-v1 of version 1, shards numbered in hexadecimal (000.tar, …), and names such as
``000/0123456789abc.flac`` (16 kHz, mono). Clips that are not in the TSV belong to
another size. ``--download`` fetches the files of a size.

Read are this layout, its inner folder, and the TSV and shards side by side as in copies
on the hub (``<size>.tsv``, ``<shard>.tar``). Clips are read within the shards, or from
``unpack_dir``, or as files if only unpacked shards are there.

Output: data dirs ``train``, ``dev`` and ``test``. Utterance ids are ``rs-<name>``
without extension and with "_" for "/"; speakers are unknown, so that every utterance is
its own speaker. In the order of the names, the first 1,000 utterances are dev, the next
100 test, the rest train: the sizes of ReazonSpeech's ESPnet recipe and of lhotse (which
take them in the order of the archives, not of the TSV).

With ``join``, the clips of each set are joined as in ESPnet's recipe: of the clips in
the order of their names, every second one stays alone, and of those between, each one
joins the ones before it until they are longer than 20 s. Texts are joined without a
space. ESPnet's change of the texts (full-width letters, no signs) and its noise are not
made. Clips of different shards are not joined.

The utterances that Nue-ASR was tested on are unknown to us.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

from speechllm.corpora._read_speech import STAGE, Utterance, summary, write_sets
from speechllm.corpora._reazonspeech_shards import (
    SIZES,
    URL,
    download_reazonspeech,
    find_audio,
    find_table,
    flac_seconds,
    join_recordings,
    split_recording,
)
from speechllm.corpora._texts import clean_text, read_lines
from speechllm.data.kaldi_table import Dropped
from speechllm.utils.errors import UserError
from speechllm.utils.sorting import sort_on_disk

DEV_UTTERANCES, TEST_UTTERANCES = 1000, 100
JOINED_SECONDS = 20.0  # which clips that are joined exceed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reazonspeech_dir", type=Path, required=True, help="folder of the download"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("data"), help="folder of the data dirs"
    )
    parser.add_argument("--size", choices=SIZES, default="all", help="TSV to read")
    parser.add_argument(
        "--download",
        action="store_true",
        help="download the files of the size that are missing, into that folder",
    )
    parser.add_argument("--url", default=URL, help=f"address of the files [{URL}]")
    parser.add_argument(
        "--unpack_dir",
        type=Path,
        help="folder to unpack shards into; needs as much space as the shards [none: "
        "read clips within the shards]",
    )
    parser.add_argument("--dev_utterances", type=int, default=DEV_UTTERANCES)
    parser.add_argument("--test_utterances", type=int, default=TEST_UTTERANCES)
    parser.add_argument(
        "--join",
        action="store_true",
        help="join clips to more than 20 s, as in ESPnet's recipe",
    )


def run(args: argparse.Namespace) -> None:
    root = args.reazonspeech_dir
    if args.download:
        root = download_reazonspeech(root, args.size, args.url)
    results = prepare_reazonspeech(
        root,
        args.output,
        args.size,
        args.unpack_dir,
        args.dev_utterances,
        args.test_utterances,
        args.join,
    )
    for name, (count, dropped) in results.items():
        print(summary(args.output / name, count, dropped))


def prepare_reazonspeech(
    reazonspeech_dir: str | Path,
    output_dir: str | Path,
    size: str = "all",
    unpack_dir: str | Path | None = None,
    dev_utterances: int = DEV_UTTERANCES,
    test_utterances: int = TEST_UTTERANCES,
    join: bool = False,
) -> dict[str, tuple[int, list[Dropped]]]:
    """Write ``train``, ``dev`` and ``test`` below ``output_dir``, all or none.

    Args:
        reazonspeech_dir: folder of the download.
        output_dir: folder of the data dirs.
        size: one of ``SIZES``.
        unpack_dir: folder to unpack shards into; None reads clips within the shards.
        dev_utterances, test_utterances: number of clips of these sets.
        join: join clips as in ESPnet's recipe.

    Returns:
        For each data dir, the number of utterances and the dropped ones (all of them
        are listed for ``train``).

    Raises:
        UserError: the TSV or the audio is missing, a shard is damaged, a name is listed
            twice, there are too few utterances for three sets, or clips that are files
            are to be joined.
    """
    if min(dev_utterances, test_utterances) < 1:
        raise UserError(
            f"{dev_utterances} dev and {test_utterances} test utterances: each needs "
            "at least 1"
        )
    table = find_table(Path(reazonspeech_dir), size)
    output_dir = Path(output_dir)
    scratch = next(
        p for p in (output_dir, *output_dir.absolute().parents) if p.is_dir()
    )
    dropped: list[Dropped] = []
    shards: Counter[str] = Counter()
    rows = sort_on_disk(_read_table(table, dropped, shards), scratch)
    first = list(islice(rows, 1))  # so that all are read
    audio = find_audio(table, size, shards.keys(), unpack_dir)
    if audio.missing:
        print(
            f"warning: {len(audio.missing)} shards of {size} are missing, the first is "
            f"{audio.missing[0]}; their clips are left out"
        )
    for name in audio.missing:
        count = shards[name.removesuffix(".tar")]
        dropped.append(Dropped(name, STAGE, "missing shard", f"{count:,} clips"))
    missing = {name.removesuffix(".tar") for name in audio.missing}
    rows = (row for row in chain(first, rows) if _shard(row[1]) not in missing)
    found: Iterable[tuple[str, ...]]
    if audio.shards:
        clips = (
            (_utterance_id(name), name, recording)
            for name, recording in audio.clips()
            if name == clean_text(name)
        )
        found = _join_clips(rows, sort_on_disk(clips, scratch))
    else:
        found = ((*row, audio.file(row[1])) for row in rows)
    stream = _utterances(found, dropped)
    few = list(islice(stream, dev_utterances + test_utterances + 1))
    if len(few) <= dev_utterances + test_utterances:
        reason = f", first: {dropped[0].reason} {dropped[0].detail}" if dropped else ""
        raise UserError(
            f"{table}: {len(few)} utterances are too few for {dev_utterances} "
            f"dev, {test_utterances} test and some train utterances "
            f"({len(dropped)} were dropped{reason}); reduce --dev_utterances and "
            "--test_utterances"
        )
    stream = chain(few, stream)
    sets: dict[Path, tuple[Iterable[Utterance], list[Dropped]]] = {
        output_dir / "dev": (islice(stream, dev_utterances), []),
        output_dir / "test": (islice(stream, test_utterances), []),
        output_dir / "train": (stream, dropped),
    }
    if join:
        sets = {path: (_join(ones), lost) for path, (ones, lost) in sets.items()}
    return write_sets(sets, "ja")


def _read_table(
    table: Path, dropped: list[Dropped], shards: Counter[str]
) -> Iterator[tuple[str, str, str]]:
    """Yield (id, name, text) of the rows of a list.

    Args:
        dropped: the bad rows are added.
        shards: the number of clips of each shard is added.
    """
    for number, line in enumerate(read_lines(table), 1):
        if not line:
            continue
        name, _, text = line.partition("\t")
        name = clean_text(name).removeprefix("./")
        text = clean_text(text)
        if "\t" not in line or not name or len(name.split()) != 1:
            problem = "expected <name><TAB><text>"
            place = f"{table.name}:{number}"
            dropped.append(Dropped(place, STAGE, "bad row", problem))
        elif not text:
            detail = f"line {number}"
            dropped.append(Dropped(_utterance_id(name), STAGE, "empty text", detail))
        else:
            shards[_shard(name)] += 1
            yield _utterance_id(name), name, text


def _utterance_id(name: str) -> str:
    return "rs-" + (name.rpartition(".")[0] or name).replace("/", "_")


def _shard(name: str) -> str:
    """Return the shard of a clip, without ``.tar``; empty if its name has none."""
    return name.partition("/")[0] if "/" in name else ""


def _join_clips(
    rows: Iterable[tuple[str, ...]], clips: Iterable[tuple[str, ...]]
) -> Iterator[tuple[str, ...]]:
    """Add its recording to each row; both are sorted by id and name.

    Args:
        rows: id, name, text.
        clips: id, name, recording; of several with one name, the last one counts.

    Yields:
        id, name, text, recording, which is empty if there is none.
    """
    clips = iter(clips)
    following = next(clips, None)
    key, recording = ("", ""), ""
    for row in rows:
        if row[:2] != key:
            key, recording = row[:2], ""
        while following is not None and following[:2] <= key:
            if following[:2] == key:
                recording = following[2]
            following = next(clips, None)
        yield *row, recording


def _utterances(
    rows: Iterable[tuple[str, ...]], dropped: list[Dropped]
) -> Iterator[Utterance]:
    """Yield the utterances of the rows that have a recording; list the others."""
    for utterance, name, text, recording in rows:
        if recording:
            yield Utterance(utterance, recording, utterance, text)
        else:
            dropped.append(Dropped(utterance, STAGE, "no audio file", name))


def _join(utterances: Iterable[Utterance]) -> Iterator[Utterance]:
    """Yield every second clip alone, and the others joined, as in ESPnet's recipe.

    Clips that stay alone wait for the joined one before them, so that the ids are in
    order.
    """
    parts: list[Utterance] = []  # to be joined
    alone: list[Utterance] = []  # those after the first part
    seconds = 0.0
    for number, utterance in enumerate(utterances):
        shard, _, size = split_recording(utterance.path)
        if not size:
            raise UserError(
                f"{shard}: clips are joined within shards (000.tar, …) only; keep the "
                "shards, and give no --unpack_dir"
            )
        if number % 2 == 0:
            alone.append(utterance)
            if not parts:
                yield from _flush(parts, alone)
            continue
        if parts and split_recording(parts[0].path)[0] != shard:
            yield from _flush(parts, alone)
            seconds = 0.0
        parts.append(utterance)
        seconds += flac_seconds(utterance.path)
        if seconds > JOINED_SECONDS:
            yield from _flush(parts, alone)
            seconds = 0.0
    yield from _flush(parts, alone)


def _flush(parts: list[Utterance], alone: list[Utterance]) -> Iterator[Utterance]:
    """Yield the joined parts and the clips after the first one; empty the lists."""
    if parts:
        yield _concatenate(parts)
    yield from alone
    parts.clear()
    alone.clear()


def _concatenate(utterances: list[Utterance]) -> Utterance:
    """Return one utterance of several clips of a shard, with the first one's id."""
    text = "".join(one.text for one in utterances)
    recording = join_recordings([one.path for one in utterances])
    return replace(utterances[0], path=recording, text=text)
