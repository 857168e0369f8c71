"""CSJ, the Corpus of Spontaneous Japanese: 661 hours of spontaneous and read talks.

Source: NINJAL (https://clrd.ninjal.ac.jp/csj/en/), under its own licence. Layout of the
edition on one drive (``_csj_editions.py`` describes that on DVDs)::

    <root>/WAV/{core,noncore}/<talk>.wav              16 kHz, mono; a monologue
    <root>/WAV/{core,noncore}/<talk>-{L,R}.wav        a dialogue, one file per speaker
    <root>/MORPH/SDB/{core,noncore}/<talk>.sdb        Shift-JIS, one word per line
    <root>/XML/…/{core,noncore}/<talk>.xml            Shift-JIS, the same and more

The first letter of a talk's name is its type: A academic, S simulated public speaking,
M other, R read again, D dialogue; kind, speaker's sex and a number follow. Lines of an
SDB file have tab-separated fields, of which the fourth (``0099 00280.998-00284.221
L:-001-001``: segment number, times, channel, position) and the sixth (the word with its
tags) are used. Of the XML, the attributes of ``IPU`` (a segment) and
``OrthographicTranscription`` of its ``SUW`` elements are used. All editions give the
same data; the SDB is preferred.

Output: data dirs ``train``, ``dev``, ``eval1``, ``eval2`` and ``eval3``, with
``segments``. Utterance ids are ``<talk>[-<channel>]_<start>_<end>`` (milliseconds), the
speaker is talk and channel, as in Kaldi's recipe. ``_csj_tags.py`` describes how tags
are converted to text.

Segments (speech between pauses of 0.2 s) are short, so adjacent ones of a channel are
joined as by Kaldi's ``csjconnect.pl``: while the pause is at most 0.5 s and the
utterance so far at most 10 s long. Utterances with masked speech (×) are then dropped.
Utterances are the same for fluent and disfluent text. In a dialogue, each channel is
joined separately, whereas Kaldi ends an utterance when the other speaker begins.

Sets: the three official evaluation sets have ten talks each; other talks of a speaker
of eval2 (A01M0056) are not used; dev is the 39 talks of lhotse's list or, with
``dev_utterances``, the first utterances of the others by id (4,000 in ESPnet, whose
last talk is in train, too); all others are train, where at most 300 utterances with the
same text are kept (Kaldi's limit; Kaldi draws them at random, we use a hash of the
utterance id). A dev or evaluation set that lacks talks is reported, one that lacks all
of them is refused. In these sets an utterance that ends after its recording is kept and
ends with it; in train it is dropped.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from speechllm.audio.io import MAX_OVERSHOOT_SECONDS
from speechllm.corpora._csj_editions import (
    EDITIONS,
    KINDS,
    Segment,
    concatenate,
    find_recording,
    find_transcripts,
)
from speechllm.corpora._csj_tags import MASK
from speechllm.corpora._read_speech import STAGE
from speechllm.data.data_dir import fill_data_dir
from speechllm.data.kaldi_table import DATA_DIR, DROPPED, Dropped
from speechllm.utils.errors import UserError
from speechllm.utils.folders import atomic_directory

EVALUATION = {
    "eval1": "A01M0097 A01M0110 A01M0137 A03M0106 A03M0112 A03M0156 A04M0051 "
    "A04M0121 A04M0123 A05M0011",
    "eval2": "A01F0001 A01F0034 A01F0063 A01M0056 A01M0141 A02M0012 A03F0072 "
    "A03M0016 A06F0135 A06M0064",
    "eval3": "S00F0019 S00F0066 S00F0148 S00F0152 S00M0008 S00M0070 S00M0079 "
    "S00M0112 S00M0213 S01F0105",
}
# Other talks of the speaker of A01M0056.
EXCLUDED = "D01M0019 D02M0028 D03M0017 D04M0056 R00M0187 S05M0613"
DEV = (
    "A01M0264 A01M0377 A01M0776 A01M0891 A03F0109 A04M0899 A05M0420 A07M0318 "
    "A07M0912 A11M0795 A12M0983 D03F0058 R00M0415 R01F0101 R01F0125 R02M0073 "
    "R03F0108 R03F0157 S00F0014 S00M0793 S01F0507 S02F0122 S02F0362 S02M1351 "
    "S02M1372 S03F1199 S04F1020 S05F0443 S07F0853 S07F1333 S07M0827 S08F0717 "
    "S08F1340 S09M0619 S10M1090 S10M1275 S11F0578 S11M0864 S11M1174"
)
SETS = ("train", "dev", *EVALUATION)
# Utterances of ESPnet's recipe, from the results that it publishes.
ESPNET_UTTERANCES = {"eval1": 1272, "eval2": 1292, "eval3": 1385}
STYLES = ("fluent", "disfluent")
_SET_OF = {
    talk: name
    for name, talks in {**EVALUATION, "dev": DEV, "excluded": EXCLUDED}.items()
    for talk in talks.split()
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--csj_dir", type=Path, required=True, help="folder of CSJ")
    parser.add_argument(
        "--output", type=Path, default=Path("data"), help="folder of the data dirs"
    )
    parser.add_argument(
        "--style", choices=STYLES, default="disfluent", help="style of the text"
    )
    parser.add_argument(
        "--edition",
        choices=tuple(EDITIONS),
        help="edition to read [the first of these that is there]",
    )
    parser.add_argument("--kinds", default=KINDS, help="first letters of talks to use")
    parser.add_argument(
        "--gap", type=float, default=0.5, help="longest pause in an utterance, s"
    )
    parser.add_argument(
        "--max_seconds", type=float, default=10.0, help="length that ends joining, s"
    )
    parser.add_argument(
        "--max_same_text",
        type=int,
        default=300,
        help="maximum number of training utterances with the same text",
    )
    parser.add_argument(
        "--dev_utterances",
        type=int,
        default=0,
        help="take the first N training utterances as dev, in ESPnet 4000 "
        "[0: 39 talks of lhotse's list]",
    )


def run(args: argparse.Namespace) -> None:
    results = prepare_csj(
        args.csj_dir,
        args.output,
        args.style,
        args.edition,
        args.kinds,
        args.gap,
        args.max_seconds,
        args.max_same_text,
        args.dev_utterances,
    )
    for line in results:
        print(line)


def prepare_csj(
    csj_dir: str | Path,
    output_dir: str | Path,
    style: str = "disfluent",
    edition: str | None = None,
    kinds: str = KINDS,
    gap: float = 0.5,
    max_seconds: float = 10.0,
    max_same_text: int = 300,
    dev_utterances: int = 0,
) -> list[str]:
    """Write the data dirs of :data:`SETS` below ``output_dir``, all or none.

    Args:
        csj_dir: folder of the corpus.
        output_dir: folder of the data dirs.
        style: ``disfluent`` (as spoken) or ``fluent`` (as intended).
        edition: ``sdb``, ``xml`` or ``dvd``; by default the first that is there.
        kinds: first letters of the talks to use; the evaluation sets use all.
        gap: longest pause within an utterance in seconds.
        max_seconds: length in seconds above which no further segment is joined.
        max_same_text: maximum number of training utterances with the same text.
        dev_utterances: number of training utterances to take as dev; 0 for the talks of
            lhotse's list.

    Returns:
        One line about each set, and warnings.

    Raises:
        UserError: the folder is not CSJ or lacks a set; a file has the wrong encoding,
            a line that cannot be parsed, or an unknown tag.
    """
    if style not in STYLES:
        raise UserError(f"style {style!r} is unknown; use {' or '.join(STYLES)}")
    if not kinds or set(kinds) - set(KINDS):
        raise UserError(f"kinds {kinds!r}: use letters of {KINDS}, such as AM")
    if dev_utterances < 0:
        raise UserError(f"--dev_utterances {dev_utterances}: give a number from 0 on")
    root = Path(csj_dir)
    transcripts, edition = find_transcripts(root, edition)
    sets: dict[str, _Set] = {name: _Set(whole=name != "train") for name in SETS}
    for talk, path in sorted(transcripts.items()):
        name = _SET_OF.get(talk, "train")
        if name == "dev" and dev_utterances:
            name = "train"
        if name == "excluded" or (name in ("train", "dev") and talk[0] not in kinds):
            continue
        sets[name].talks.add(talk)
        for channel, segments in EDITIONS[edition](path, talk):
            recording = talk if talk[0] != "D" else f"{talk}-{channel}"
            wav = find_recording(root, path, edition, recording)
            utterances = join_segments(segments, gap, max_seconds)
            sets[name].add(recording, wav, utterances, style)
    if dev_utterances:
        sets["dev"] = sets["train"].take_first(dev_utterances, root)
    for name, one in sets.items():
        if not one.tables["text"]:
            raise UserError(_why_empty(root, name, one))
    sets["train"].limit_same_texts(max_same_text)
    lines = []
    with ExitStack() as stack:
        for name, one in sets.items():
            folder = Path(output_dir) / name
            new = stack.enter_context(atomic_directory(folder, DATA_DIR, [root]))
            fill_data_dir(new, one.tables, one.dropped)
    for name, one in sets.items():
        lines.append(one.describe(Path(output_dir) / name))
        talks = set(EVALUATION.get(name, "").split())
        if name == "dev" and not dev_utterances:
            talks = {talk for talk in DEV.split() if talk[0] in kinds}
        as_espnet = (gap, max_seconds, style) == (0.5, 10.0, "disfluent")
        expected = ESPNET_UTTERANCES.get(name) if as_espnet else None
        count = len(one.tables["text"])
        if missing := talks - one.talks:
            lines.append(
                f"warning: {name} lacks {len(missing)} of its {len(talks)} talks "
                f"({', '.join(sorted(missing))}): scores are not comparable"
            )
        elif expected is not None and count != expected:
            lines.append(
                f"warning: {name} has {count:,} utterances, in ESPnet's recipe "
                f"{expected:,}; see {Path(output_dir) / name / DROPPED}"
            )
    return lines


def join_segments(
    segments: Iterable[Segment], gap: float, max_seconds: float
) -> list[Segment]:
    """Join adjacent segments into utterances; segments without speech are skipped.

    A segment begins a new utterance if the pause before it is longer than ``gap`` or
    the utterance is already longer than ``max_seconds``.
    """
    utterances: list[list[Segment]] = []
    for segment in segments:
        if not segment.text.disfluent:
            continue
        if utterances:
            current = utterances[-1]
            pause = segment.start - current[-1].end
            length = current[-1].end - current[0].start
            if pause <= gap and length <= max_seconds:
                current.append(segment)
                continue
        utterances.append([segment])
    return [concatenate(utterance) for utterance in utterances]


class _Set:
    """The tables and dropped utterances of a set while the corpus is read.

    Args:
        whole: keep utterances that end after their recording, up to its end.
    """

    def __init__(self, whole: bool = False) -> None:
        self.whole = whole
        names = ("wav.scp", "segments", "utt2spk", "utt2lang", "utt2dur", "text")
        self.tables: dict[str, dict[str, str]] = {name: {} for name in names}
        self.dropped: list[Dropped] = []
        self.talks: set[str] = set()

    def add(
        self, recording: str, wav: Path, utterances: list[Segment], style: str
    ) -> None:
        """Add the utterances of one recording, or list why they are dropped."""
        seconds, problem = _length(wav)
        for one in utterances:
            text = getattr(one.text, style)
            start, end = round(1000 * one.start), round(1000 * one.end)
            last = min(one.end, seconds) if self.whole else one.end
            utterance = f"{recording}_{start:07d}_{end:07d}"
            if problem:
                self.drop(utterance, *problem)
            elif MASK in one.text.disfluent:
                self.drop(utterance, "masked speech", text)
            elif not text:
                self.drop(utterance, "empty text", one.text.disfluent)
            elif end <= start:
                self.drop(utterance, "no duration", text)
            elif last > seconds + MAX_OVERSHOOT_SECONDS or last <= one.start + 5e-4:
                detail = f"ends at {one.end:.2f} s of {seconds:.2f} s in {wav}"
                self.drop(utterance, "past the end of the recording", detail)
            else:
                times = f"{recording} {one.start:.3f} {last:.3f}"
                self.tables["segments"][utterance] = times
                self.tables["utt2spk"][utterance] = recording
                self.tables["utt2lang"][utterance] = "ja"
                self.tables["utt2dur"][utterance] = f"{last - one.start:.3f}"
                self.tables["text"][utterance] = text
                self.tables["wav.scp"][recording] = os.path.abspath(wav)

    def drop(self, utterance: str, reason: str, detail: str) -> None:
        self.dropped.append(Dropped(utterance, STAGE, reason, detail))

    def take_first(self, count: int, root: Path) -> _Set:
        """Move the first utterances by id to a new set."""
        utterances = sorted(self.tables["text"])
        if len(utterances) <= count:
            raise UserError(
                f"{root}: {len(utterances)} training utterances are too few for "
                f"--dev_utterances {count}"
            )
        taken = _Set()
        for utterance in utterances[:count]:
            recording = self.tables["utt2spk"][utterance]
            taken.tables["wav.scp"][recording] = self.tables["wav.scp"][recording]
            taken.talks.add(recording.partition("-")[0])
            for name in self.tables.keys() - {"wav.scp"}:
                taken.tables[name][utterance] = self.tables[name].pop(utterance)
        self._remove_unused_recordings()
        return taken

    def limit_same_texts(self, most: int) -> None:
        """Keep at most ``most`` utterances of a text, chosen by a hash of their ids."""
        same = defaultdict(list)
        for utterance, text in self.tables["text"].items():
            same[text].append(utterance)
        for text, utterances in same.items():
            utterances.sort(key=lambda one: hashlib.md5(one.encode()).digest())
            for utterance in utterances[most:]:
                self.drop(utterance, "same text too often", text)
                for name in self.tables.keys() - {"wav.scp"}:
                    del self.tables[name][utterance]
        self._remove_unused_recordings()

    def _remove_unused_recordings(self) -> None:
        used = {value.split()[0] for value in self.tables["segments"].values()}
        for recording in self.tables["wav.scp"].keys() - used:
            del self.tables["wav.scp"][recording]

    def describe(self, directory: Path) -> str:
        """Return one line with the set's size and dropped utterances."""
        reasons = Counter(entry.reason for entry in self.dropped)
        left_out = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()))
        hours = sum(map(float, self.tables["utt2dur"].values())) / 3600
        return (
            f"{directory}: {len(self.tables['text'])} utterances, {hours:.2f} hours, "
            f"{len(self.talks)} talks" + (f"; left out: {left_out}" if left_out else "")
        )


def _length(wav: Path) -> tuple[float, tuple[str, str] | None]:
    from speechllm.audio.io import audio_info

    if not wav.is_file():
        return 0.0, ("no audio file", str(wav))
    try:
        return audio_info(wav).seconds, None
    except UserError as error:
        return 0.0, ("unreadable audio", str(error))


def _why_empty(root: Path, name: str, one: _Set) -> str:
    talks = EVALUATION.get(name, DEV if name == "dev" else "any other").split()
    if not one.talks:
        instead = ""
        if name == "dev":
            instead = ", or use training utterances instead: --dev_utterances 4000"
        return (
            f"{root}: no transcript of {name} ({', '.join(talks[:3])}, …); copy the "
            f"whole corpus{instead}"
        )
    first = f"{one.dropped[0].reason}: {one.dropped[0].detail}" if one.dropped else ""
    return (
        f"{root}: no usable utterance in {name} ({len(one.talks)} talks are "
        f"transcribed); first problem: {first or 'no speech in it'}"
    )
