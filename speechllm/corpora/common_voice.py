"""Common Voice: sentences read by volunteers in over a hundred languages.

Source: https://commonvoice.mozilla.org/datasets. Licence: CC0. Layout of one language
of a release (such as cv-corpus-8.0-2022-01-19, on which Nue-ASR was tested)::

    <root>/<lang>/{train,dev,test,validated}.tsv
    <root>/<lang>/clips/<clip>.mp3

The columns ``client_id``, ``path`` and ``sentence`` of the TSV files are used.

Output: a data dir per split. Utterance ids are ``<speaker>-<clip>``; the speaker is the
first 16 characters of ``client_id``. The sentence is unchanged except for quotation
marks that some releases put around a field. Rows without a sentence or clip, or with
another number of fields than the header, are listed in ``dropped.tsv``. Mozilla's
train, dev and test share no speaker and no sentence.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from speechllm.corpora._common_voice_tsv import SPEAKER_LENGTH, read_clips
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
    parser.add_argument("--splits", nargs="+", default=list(SPLITS))
    parser.add_argument("--prefix", default="", help="prefix of the data dirs' names")


def run(args: argparse.Namespace) -> None:
    results = prepare_common_voice(
        args.common_voice_dir, args.output, args.lang, args.splits, args.prefix
    )
    for name, (count, dropped) in results.items():
        print(summary(args.output / name, count, dropped))


def prepare_common_voice(
    common_voice_dir: str | Path,
    output_dir: str | Path,
    lang: str = "ja",
    splits: tuple[str, ...] | list[str] = SPLITS,
    prefix: str = "",
) -> dict[str, tuple[int, list[Dropped]]]:
    """Write ``<prefix><split>`` below ``output_dir`` for each split, all or none.

    Returns:
        For each data dir, the number of utterances and the dropped ones.

    Raises:
        UserError: the release lacks the language or a split, a TSV lacks a column, or a
            clip is in two splits.
    """
    root = check_root(common_voice_dir, "a Common Voice release", lang)
    root = check_root(root / lang, f"Common Voice's language {lang}", "clips")
    clips = {entry.name for entry in os.scandir(root / "clips")}
    language = lang.split("-")[0]  # folders such as zh-CN and sv-SE have a country
    seen: dict[str, str] = {}
    sets = {}
    for split in splits:
        dropped: list[Dropped] = []
        utterances = sorted(_read_split(root, split, clips, dropped))
        if not utterances and not dropped:
            raise UserError(f"{root / split}.tsv: lists no clip")
        for one in utterances:
            if seen.setdefault(one.path, split) != split:
                raise UserError(
                    f"{root / split}.tsv: the clip {Path(one.path).name} is also in "
                    f"{seen[one.path]}.tsv; remove it from one of them"
                )
        sets[Path(output_dir) / f"{prefix}{split}"] = utterances, dropped
    return write_sets(sets, language)


def _read_split(
    root: Path, split: str, clips: set[str], dropped: list[Dropped]
) -> Iterator[Utterance]:
    folder = (root / "clips").resolve()
    table = root / f"{split}.tsv"

    def drop_row(number: int, problem: str) -> None:
        dropped.append(Dropped(f"{table.name}:{number}", STAGE, "bad row", problem))

    for row in read_clips(table, ("client_id", "path", "sentence"), drop_row):
        name = os.path.basename(row["path"])
        if name and "." not in name:  # the oldest releases omit the extension
            name += ".mp3"
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
