"""Common Voice: sentences read by volunteers in over a hundred languages.

Source: https://commonvoice.mozilla.org/datasets. Licence: CC0. Layout of one language
of any release from 4.0 on (such as cv-corpus-8.0-2022-01-19, on which Nue-ASR was
tested)::

    <root>/<lang>/{train,dev,test,validated}.tsv
    <root>/<lang>/clips/<clip>.mp3

The columns ``client_id``, ``path`` and ``sentence`` of the TSV files are used. Each
release has splits of its own. ``split_dir`` takes the TSV files of another release:
clips are looked up by their names, which do not change. A split is refused if the
release has less than ``min_share`` of its clips; ``missing_clips.tsv`` lists them.

Output: a data dir per split. Utterance ids are ``<speaker>-<clip>``; the speaker is the
first 16 characters of ``client_id``. The sentence is unchanged except for quotation
marks that some releases put around a field. Rows without a sentence or clip, or with
another number of fields than the header, are listed in ``dropped.tsv``. Mozilla's
train, dev and test share no speaker and no sentence. With ``train_split`` ``validated``
train is that of ESPnet's recipe: all validated clips except those of dev and test, with
other recordings of their speakers and sentences.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
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
from speechllm.corpora._read_speech import (
    STAGE,
    Utterance,
    check_root,
    summary,
    write_sets,
)
from speechllm.corpora._texts import clean_text
from speechllm.data.kaldi_table import Dropped
from speechllm.utils.errors import UserError

SPLITS = ("train", "dev", "test")
TRAIN_SPLITS = ("train", "validated")
_MISSING = ("no audio file", "bad row")  # reasons


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--common_voice_dir",
        type=Path,
        required=True,
        help="folder of a release, with one folder per language",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("data"), help="folder of the data dirs"
    )
    parser.add_argument("--lang", default="ja", help="folder of the language")
    parser.add_argument(
        "--splits", nargs="+", default=list(SPLITS), help="splits to prepare"
    )
    parser.add_argument("--prefix", default="", help="prefix of the data dirs' names")
    parser.add_argument(
        "--split_dir",
        type=Path,
        help="folder of the splits' TSV files, such as those of another release "
        "[folder of the language]",
    )
    parser.add_argument(
        "--train_split",
        choices=TRAIN_SPLITS,
        default="train",
        help="clips of train: Mozilla's train, or, as in ESPnet, validated without "
        "those of dev and test",
    )
    parser.add_argument(
        "--min_share",
        type=float,
        default=MIN_SHARE,
        help="least share of each split's clips that the release must have "
        f"[{MIN_SHARE}]",
    )


def run(args: argparse.Namespace) -> None:
    results, lines = prepare_common_voice(
        args.common_voice_dir,
        args.output,
        args.lang,
        args.splits,
        args.prefix,
        args.split_dir,
        args.train_split,
        args.min_share,
    )
    for name, (count, dropped) in results.items():
        print(summary(args.output / name, count, dropped))
    print("\n".join(lines))


def prepare_common_voice(
    common_voice_dir: str | Path,
    output_dir: str | Path,
    lang: str = "ja",
    splits: tuple[str, ...] | list[str] = SPLITS,
    prefix: str = "",
    split_dir: str | Path | None = None,
    train_split: str = "train",
    min_share: float = MIN_SHARE,
) -> tuple[dict[str, tuple[int, list[Dropped]]], list[str]]:
    """Write ``<prefix><split>`` below ``output_dir`` for each split, all or none.

    Args:
        common_voice_dir: folder of a release, with a folder per language.
        output_dir: folder of the data dirs.
        lang: folder of the language.
        splits: names of TSV files.
        prefix: of the data dirs' names.
        split_dir: folder of the TSV files; None for that of the language.
        train_split: ``validated`` takes for train all validated clips except those of
            dev and test.
        min_share: least share of each split's clips that the release must have.

    Returns:
        For each data dir, the number of utterances and the dropped ones; and one line
        about the rows found of each split.

    Raises:
        UserError: the release lacks the language, a split or too many clips, a TSV
            lacks a column, or a clip is in two splits.
    """
    check_min_share(min_share)
    root = check_root(common_voice_dir, "a Common Voice release", lang)
    root = check_root(root / lang, f"Common Voice's language {lang}", "clips")
    clips = {entry.name for entry in os.scandir(root / "clips")}
    language = lang.split("-")[0]  # folders such as zh-CN and sv-SE have a country
    tables = root if split_dir is None else Path(split_dir)
    seen: dict[str, str] = {}
    sets = {}
    shares = []
    for split in splits:
        dropped: list[Dropped] = []
        table, skip = tables / f"{split}.tsv", set()
        if split == "train" and train_split == "validated":
            table, skip = tables / "validated.tsv", _clips_of(tables, ("dev", "test"))
        rows = _read_split(table, root / "clips", clips, skip, dropped)
        utterances = sorted(rows)
        if not utterances and not dropped:
            raise UserError(f"{table}: lists no clip")
        for one in utterances:
            if seen.setdefault(one.path, split) != split:
                raise UserError(
                    f"{table}: the clip {Path(one.path).name} is also in "
                    f"{seen[one.path]}.tsv; remove it from one of them"
                )
        missing = [entry for entry in dropped if entry.reason in _MISSING]
        shares.append(Share(split, len(utterances) + len(dropped), missing))
        sets[Path(output_dir) / f"{prefix}{split}"] = utterances, dropped
    lines = check_shares(root, output_dir, shares, min_share)
    return write_sets(sets, language), lines


def _clips_of(tables: Path, splits: tuple[str, ...]) -> set[str]:
    """Return the names of the clips of some splits."""
    return {
        clip_name(row["path"])
        for split in splits
        for row in read_clips(tables / f"{split}.tsv", ("path",), lambda *_: None)
    }


def _read_split(
    table: Path, folder: Path, clips: set[str], skip: set[str], dropped: list[Dropped]
) -> Iterator[Utterance]:
    """Yield the rows of a TSV except the clips in ``skip``; list what is dropped."""
    folder = folder.resolve()

    def drop_row(number: int, problem: str) -> None:
        dropped.append(Dropped(f"{table.name}:{number}", STAGE, "bad row", problem))

    for row in read_clips(table, ("client_id", "path", "sentence"), drop_row):
        name = clip_name(row["path"])
        if name in skip:
            continue
        text = clean_text(row["sentence"])
        speaker = "".join(row["client_id"].split())[:SPEAKER_LENGTH] or "unknown"
        utterance = f"{speaker}-{name.rpartition('.')[0]}"
        if name not in clips or len(utterance.split()) != 1:
            detail = str(folder / name) if name else f"{table}: a row with no path"
            dropped.append(Dropped(name or "?", STAGE, "no audio file", detail))
        elif not text:
            dropped.append(Dropped(utterance, STAGE, "empty text", name))
        else:
            yield Utterance(utterance, f"{folder}/{name}", speaker, text)
