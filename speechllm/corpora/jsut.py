"""JSUT: ten hours of Japanese sentences read by one woman in an anechoic room.

Source: https://sites.google.com/site/shinnosuketakamichi/publication/jsut (Sonobe,
Takamichi, Saruwatari, arXiv 1711.00354). Licence: texts CC-BY-SA 4.0 and others by part
(LICENCE.txt in the corpus); recordings for research, non-commercial and private use, no
redistribution. Layout of version 1.1::

    <root>/<part>/transcript_utf8.txt        <utterance>:<text>
    <root>/<part>/wav/<utterance>.wav        48 kHz, mono, 16 bit

with the parts basic5000, countersuffix26, loanword128, onomatopee300, precedent130,
repeat500, travel1000, utparaphrase512 and voiceactress100.

Output: one data dir per part, ``jsut_<part>``, with the corpus's utterance ids, one
speaker ``jsut`` and the original text. JSUT basic5000 (5,000 sentences that cover the
readings of the daily-use kanji) is a test set of Nue-ASR.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from speechllm.corpora._read_speech import (
    STAGE,
    Utterance,
    check_root,
    summary,
    write_sets,
)
from speechllm.corpora._texts import clean_text, read_lines
from speechllm.data.kaldi_table import Dropped
from speechllm.utils.errors import UserError

PARTS = (
    "basic5000",
    "countersuffix26",
    "loanword128",
    "onomatopee300",
    "precedent130",
    "repeat500",
    "travel1000",
    "utparaphrase512",
    "voiceactress100",
)
TRANSCRIPT = "transcript_utf8.txt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jsut_dir", type=Path, required=True, help="folder jsut_ver1.1"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("data"), help="folder of the data dirs"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["basic5000"])


def run(args: argparse.Namespace) -> None:
    results = prepare_jsut(args.jsut_dir, args.output, args.parts)
    for name, (count, dropped) in results.items():
        print(summary(args.output / name, count, dropped))


def prepare_jsut(
    jsut_dir: str | Path,
    output_dir: str | Path,
    parts: Iterable[str] = ("basic5000",),
) -> dict[str, tuple[int, list[Dropped]]]:
    """Write ``jsut_<part>`` below ``output_dir`` for each part, all or none.

    Returns:
        For each data dir, the number of utterances and the dropped ones: lines without
        a text, and utterances whose file is missing.

    Raises:
        UserError: a part is missing, or its transcript is not UTF-8, has a line without
            a colon, or lists an utterance twice.
    """
    sets = {}
    for part in parts:
        root = check_root(jsut_dir, "JSUT (jsut_ver1.1)", f"{part}/{TRANSCRIPT}")
        dropped: list[Dropped] = []
        utterances = sorted(_read_part(root / part, dropped))
        if not utterances and not dropped:
            raise UserError(f"{root / part / TRANSCRIPT}: lists no utterance")
        sets[Path(output_dir) / f"jsut_{part}"] = utterances, dropped
    return write_sets(sets, "ja")


def _read_part(folder: Path, dropped: list[Dropped]) -> Iterator[Utterance]:
    path = folder / TRANSCRIPT
    wavs = (folder / "wav").resolve()
    if not wavs.is_dir():
        raise UserError(f"{wavs}: no such folder; unpack the whole corpus")
    there = {entry.name for entry in wavs.iterdir()}
    for number, line in enumerate(map(clean_text, read_lines(path)), 1):
        if not line:
            continue
        key, colon, text = line.partition(":")
        key, text = key.strip(), text.strip()
        if not colon or not key or len(key.split()) > 1:
            raise UserError(
                f"{path}:{number}: expected <utterance>:<text>, got {line!r}"
            )
        if f"{key}.wav" not in there:
            detail = f"{wavs / key}.wav"
            dropped.append(Dropped(key, STAGE, "no audio file", detail))
        elif not text:
            dropped.append(Dropped(key, STAGE, "empty text", f"line {number}"))
        else:
            yield Utterance(key, f"{wavs / key}.wav", "jsut", text)
