"""A user's own data: audio with transcripts in any of the usual forms.

``--data`` is one of

* a folder of audio files with a ``.txt``, ``.srt`` or ``.vtt`` file next to each
  (``audio_folder``);
* a manifest ``.csv``, ``.tsv``, ``.json`` or ``.jsonl``, or a folder of them named
  after sets or ``metadata.*`` (``manifest``): Common Voice, NeMo, Hugging Face's
  ``audiofolder``;
* a Kaldi data dir, or a folder of data dirs named after sets;
* a Lhotse CutSet ``.jsonl`` or ``.jsonl.gz``, or a folder of them named after sets
  (``kaldi_lhotse``).

Output: data dirs ``train``, ``dev`` and ``test`` (as given, else by ``splits``),
``REPORT.md`` with the numbers and the warnings of ``checks``, and ``warnings.tsv`` with
the utterances of each warning. Utterance ids are ``<speaker>-<name>``; where the
speaker is unknown, each recording is one. Whole recordings that are longer than
``--max_seconds`` are left out, unless ``--alignments`` of
``speechllm.bin.align_recordings`` has their segments.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from speechllm.corpora.own_data.items import SETS, ReadOptions
from speechllm.corpora.own_data.manifest import ROLES
from speechllm.corpora.own_data.sets import (
    UNKNOWN_SECONDS,
    Corpus,
    build_corpus,
    write_sets,
)
from speechllm.corpora.own_data.source import apply_alignments, measure, read_source
from speechllm.data.kaldi_table import DATA_DIR
from speechllm.text.tasks import check_language
from speechllm.utils.errors import UserError
from speechllm.utils.folders import require_output
from speechllm.utils.io import atomic_open, write_json
from speechllm.utils.schema import check_options, number, optional

MAX_SECONDS = 30.0


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of reading, which ``align_recordings`` has too."""
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder or file with the data")
    add("--lang", default="en", help="code of the spoken language [en]")
    add("--tgt_lang", default="", help="code of the translations' language [none]")
    add(
        "--audio_dir", type=Path, help="folder that paths in a manifest are relative to"
    )
    add(
        "--speaker_from",
        choices=("folder", "name"),
        default="",
        help="take the speaker from the folder of the audio file, or from its name up "
        "to the first - or _ [from the manifest, Kaldi dir or CutSet]",
    )
    for role in ROLES:
        add(f"--{role}_column", help=f"column of the {role} in a manifest [guessed]")


def reading_options(args: argparse.Namespace) -> ReadOptions:
    """Return the options of reading."""
    given = {role: getattr(args, f"{role}_column") for role in ROLES}
    check_language(args.lang, "--lang")
    if args.tgt_lang:
        check_language(args.tgt_lang, "--tgt_lang")
        if args.tgt_lang == args.lang:
            raise UserError(f"--tgt_lang {args.tgt_lang}: is the spoken language")
    return ReadOptions(
        args.lang,
        args.tgt_lang,
        {role: name for role, name in given.items() if name is not None},
        args.audio_dir,
        args.speaker_from,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_reading_arguments(parser)
    add = parser.add_argument
    add("--output", type=Path, default=Path("data"), help="folder of the data dirs")
    add("--alignments", type=Path, help="output of speechllm.bin.align_recordings")
    add("--dev_share", type=float, help="of the speech, 0 to 1 [0.1, at most 2 hours]")
    add("--test_share", type=float, help="of the speech, 0 to 1 [0.1, at most 2 hours]")
    add(
        "--max_seconds",
        type=float,
        default=MAX_SECONDS,
        help=f"longest utterance [{MAX_SECONDS:g}]",
    )


def run(args: argparse.Namespace) -> None:
    given = {
        "--dev_share": args.dev_share,
        "--test_share": args.test_share,
        "--max_seconds": args.max_seconds,
    }
    share = optional(number(least=0, most=0.5))
    rules = {"--dev_share": share, "--test_share": share}
    check_options(given, rules | {"--max_seconds": number(above=0)}, "command line")
    report = prepare_own_data(
        args.data,
        args.output,
        reading_options(args),
        args.dev_share,
        args.test_share,
        args.max_seconds,
        args.alignments,
    )
    print(report)


def prepare_own_data(
    data: Path,
    output: Path,
    options: ReadOptions,
    dev_share: float | None = None,
    test_share: float | None = None,
    max_seconds: float = MAX_SECONDS,
    alignments: Path | None = None,
) -> str:
    """Write the data dirs, the report and the warnings; return the report.

    Raises:
        UserError: the input cannot be read, too much of it is in recordings that are
            too long, or it has too few utterances for three sets.
    """
    _claim(output, data)
    source = read_source(data, options)
    source.items = measure(source)
    if alignments is not None:
        apply_alignments(source, alignments)
    corpus = build_corpus(source, options, dev_share, test_share, max_seconds)
    write_sets(output, corpus, options)
    report = make_report(data, source.kind, corpus, output / "warnings.tsv")
    with atomic_open(output / "warnings.tsv") as stream:
        stream.write("warning\tutterance\tdetail\n")
        for finding in corpus.findings:
            for key, detail in finding.entries:
                stream.write(f"{finding.name}\t{key}\t{' '.join(detail.split())}\n")
    with atomic_open(output / "REPORT.md") as stream:
        stream.write(report + "\n")
    hours = dict.fromkeys(SETS, 0.0)
    for one in corpus.utterances:
        hours[one.set] += (one.seconds or UNKNOWN_SECONDS) / 3600
    write_json(output / "own_data.json", {"data": str(data.absolute()), "hours": hours})
    return report


def make_report(data: Path, kind: str, corpus: Corpus, warnings: Path) -> str:
    """Return the report: sets, what was left out, warnings."""
    lines = [f"{data}: {kind}", *corpus.notes, ""]
    lines += ["| set | utterances | hours | speakers | mean s | max s |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    for name in SETS:
        own = [one for one in corpus.utterances if one.set == name]
        seconds = [one.seconds for one in own if one.seconds is not None]
        speakers = {one.speaker for one in own} - {""}
        cells = [name, f"{len(own):,}", f"{sum(seconds) / 3600:.2f}"]
        cells += [f"{len(speakers):,}" if speakers else "?"]
        cells += [f"{sum(seconds) / len(seconds):.1f}" if seconds else "?"]
        cells += [f"{max(seconds):.1f}" if seconds else "?"]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    reasons = Counter(entry.reason for entry in corpus.dropped)
    if reasons:
        counts = ", ".join(
            f"{count:,} {reason}" for reason, count in sorted(reasons.items())
        )
        lines.append(f"left out: {counts} ({warnings.parent}/train/dropped.tsv)")
    lines += [f"warning: {finding.line()}" for finding in corpus.findings]
    if any(finding.entries for finding in corpus.findings):
        lines.append(f"the utterances of the warnings are in {warnings}")
    return "\n".join(lines)


def _claim(output: Path, data: Path) -> None:
    """Refuse an output folder with other data, before anything is read."""
    known = output / "own_data.json"
    if known.is_file():
        before = json.loads(known.read_text("utf-8")).get("data")
        if before != str(data.absolute()):
            raise UserError(
                f"{output}: has the data of {before}; give another --data_name for "
                f"{data}"
            )
    for name in SETS:
        require_output(output / name, DATA_DIR, [data])
