"""CSJ, the Corpus of Spontaneous Japanese: 661 hours of spontaneous and read talks.

Source: NINJAL (https://clrd.ninjal.ac.jp/csj/en/), under its own licence. Layout of the
edition on one drive::

    <root>/WAV/{core,noncore}/<talk>.wav              16 kHz, mono; a monologue
    <root>/WAV/{core,noncore}/<talk>-{L,R}.wav        a dialogue, one file per speaker
    <root>/MORPH/SDB/{core,noncore}/<talk>.sdb        Shift-JIS, one word per line
    <root>/XML/…/{core,noncore}/<talk>.xml            Shift-JIS, the same and more

The first letter of a talk's name is its type: A academic, S simulated public speaking,
M other, R read again, D dialogue; kind, speaker's sex and a number follow. Lines of an
SDB file have tab-separated fields, of which the fourth (``0099 00280.998-00284.221
L:-001-001``: segment number, times, channel, position) and the sixth (the word with its
tags) are used. Of the XML, the attributes of ``IPU`` (a segment) and
``OrthographicTranscription`` of its ``SUW`` elements are used. Both editions give the
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
of eval2 (A01M0056) are not used; dev is the 39 talks of lhotse's list; all others are
train, where at most 300 utterances with the same text are kept (Kaldi's limit; Kaldi
draws them at random, we use a hash of the utterance id).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from speechllm.audio.io import MAX_OVERSHOOT_SECONDS
from speechllm.corpora._csj_tags import MASK, Text, Word, read_words
from speechllm.corpora._read_speech import STAGE
from speechllm.data.data_dir import fill_data_dir
from speechllm.data.kaldi_table import DATA_DIR, Dropped
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
STYLES = ("fluent", "disfluent")
KINDS = "ASMRD"  # first letters of the talks
_SET_OF = {
    talk: name
    for name, talks in {**EVALUATION, "dev": DEV, "excluded": EXCLUDED}.items()
    for talk in talks.split()
}
_PARTS = ("core", "noncore")
_TALK = re.compile(rf"[{KINDS}]\d\d[FM]\d{{4}}$")
_TIME = re.compile(r"(\d+) (\d+(?:\.\d+)?)-(\d+(?:\.\d+)?) ([LR]):")
_DECLARATION = re.compile(rb"^\s*<\?xml[^>]*?encoding=[\"']([\w-]+)[\"'][^>]*\?>")
_HALF_WIDTH_KANA = re.compile("[\uff61-\uff9f]")


@dataclass
class Segment:
    """Speech between two pauses: start and end in seconds, and its text."""

    start: float
    end: float
    text: Text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--csj_dir", type=Path, required=True, help="folder of CSJ")
    parser.add_argument(
        "--output", type=Path, default=Path("data"), help="folder of the data dirs"
    )
    parser.add_argument(
        "--style", choices=STYLES, default="disfluent", help="style of the text"
    )
    parser.add_argument(
        "--edition", choices=tuple(EDITIONS), help="edition to read [sdb if present]"
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
) -> list[str]:
    """Write the data dirs of :data:`SETS` below ``output_dir``, all or none.

    Args:
        csj_dir: folder of the corpus.
        output_dir: folder of the data dirs.
        style: ``disfluent`` (as spoken) or ``fluent`` (as intended).
        edition: ``sdb`` or ``xml``; by default the SDB if there is one.
        kinds: first letters of the talks to use; the evaluation sets use all.
        gap: longest pause within an utterance in seconds.
        max_seconds: length in seconds above which no further segment is joined.
        max_same_text: maximum number of training utterances with the same text.

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
    root = Path(csj_dir)
    transcripts, edition = find_transcripts(root, edition)
    sets: dict[str, _Set] = {name: _Set() for name in SETS}
    for talk, path in sorted(transcripts.items()):
        name = _SET_OF.get(talk, "train")
        if name == "excluded" or (name in ("train", "dev") and talk[0] not in kinds):
            continue
        sets[name].talks.add(talk)
        for channel, segments in EDITIONS[edition](path, talk):
            recording = talk if talk[0] != "D" else f"{talk}-{channel}"
            wav = root / "WAV" / path.parent.name / f"{recording}.wav"
            utterances = join_segments(segments, gap, max_seconds)
            sets[name].add(recording, wav, utterances, style)
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
        if missing := set(EVALUATION.get(name, "").split()) - one.talks:
            lines.append(
                f"warning: {name} lacks {len(missing)} of its 10 talks "
                f"({', '.join(sorted(missing))}): scores are not comparable"
            )
    return lines


def find_transcripts(
    root: Path, edition: str | None = None
) -> tuple[dict[str, Path], str]:
    """Return {talk: transcript} and the edition found.

    Raises:
        UserError: there are no transcripts, or two of the same talk.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder with WAV, MORPH, …")
    wanted = [edition] if edition else ["sdb", "xml"]
    folders = {"sdb": root / "MORPH" / "SDB", "xml": root / "XML"}
    for name in wanted:
        found: dict[str, Path] = {}
        for part in _PARTS:
            for path in sorted(folders[name].rglob(f"{part}/*.{name}")):
                if found.setdefault(path.stem, path) != path:
                    raise UserError(
                        f"{path}: {found[path.stem]} is the same talk; remove one"
                    )
        found = {talk: path for talk, path in found.items() if _TALK.match(talk)}
        if found:
            return found, name
    places = " nor ".join(f"{folders[n]}/**/{{core,noncore}}/*.{n}" for n in wanted)
    there = ", ".join(sorted(path.name for path in root.iterdir())[:5]) or "nothing"
    raise UserError(
        f"{root}: no {places}; give the folder of CSJ that contains WAV, and MORPH or "
        f"XML; it contains: {there}"
    )


def read_sdb(path: Path, talk: str) -> list[tuple[str, list[Segment]]]:
    """Read the segments of each channel from an SDB file, ordered by time."""
    numbers: dict[str, dict[str, int]] = defaultdict(dict)
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    words: dict[str, list[Word]] = defaultdict(list)
    for number, line in enumerate(_read_shift_jis(path).split("\n"), 1):
        if not line.strip():
            continue
        fields = line.rstrip("\r").split("\t")
        match = _TIME.match(fields[3]) if len(fields) > 5 else None
        if not match:
            raise UserError(
                f"{path}:{number}: not a line of an SDB file; expected a fourth field "
                "such as '0001 00000.433-00002.150 L:-001-001'"
            )
        segment, start, end, channel = match.groups()
        known = numbers[channel]
        if segment not in known:
            known[segment] = len(known)
            times[channel].append((float(start), float(end)))
        words[channel].append(Word(fields[5], known[segment], f"{path}:{number}"))
    return _channels(path, times, words)


def read_xml(path: Path, talk: str) -> list[tuple[str, list[Segment]]]:
    """Read the segments of each channel from an XML file, ordered by time."""
    from xml.etree import ElementTree

    content = path.read_bytes()
    declared = _DECLARATION.match(content)
    encoding = declared[1].decode().lower() if declared else "utf-8"
    if encoding in ("shift_jis", "shift-jis", "sjis", "windows-31j", "cp932"):
        text = _read_shift_jis(path)  # expat does not support this encoding
        content = text[len(declared[0].decode("ascii")) :].encode("utf-8")
    try:
        talk_element = ElementTree.fromstring(content)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise UserError(
            f"{path}: not a complete XML file ({error}); copy it again"
        ) from None
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    words: dict[str, list[Word]] = defaultdict(list)
    for unit in talk_element.iter("IPU"):
        number = unit.get("IPUID", "?")
        channel = unit.get("Channel") or "L"
        try:
            span = float(unit.attrib["IPUStartTime"]), float(unit.attrib["IPUEndTime"])
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{path}: IPU {number}: no start or end time ({error}); copy it again"
            ) from None
        times[channel].append(span)
        for word in unit.iter("SUW"):
            text = word.get("OrthographicTranscription", "")
            segment = len(times[channel]) - 1
            words[channel].append(Word(text, segment, f"{path}: IPU {number}"))
    return _channels(path, times, words)


EDITIONS = {"sdb": read_sdb, "xml": read_xml}


def _channels(
    path: Path,
    times: dict[str, list[tuple[float, float]]],
    words: dict[str, list[Word]],
) -> list[tuple[str, list[Segment]]]:
    if not times:
        raise UserError(f"{path}: the transcript is empty; copy it again")
    channels = []
    for channel, spans in sorted(times.items()):
        texts, tied = read_words(words[channel], len(spans))
        segments = [
            Segment(start, end, text)
            for (start, end), text in zip(spans, texts, strict=True)
        ]
        channels.append((channel, _tie(segments, tied)))
    return channels


def _tie(segments: list[Segment], tied: list[tuple[int, int]]) -> list[Segment]:
    """Join the segments that a tag with alternatives spans."""
    tied_to_previous = {
        index for first, last in tied for index in range(first + 1, last + 1)
    }
    joined: list[Segment] = []
    for index, segment in enumerate(segments):
        if index in tied_to_previous:
            joined[-1] = _join([joined[-1], segment])
        else:
            joined.append(segment)
    return joined


def _read_shift_jis(path: Path) -> str:
    """Decode a file of the corpus.

    Half-width kana do not occur in CSJ, so that they indicate another encoding.

    Raises:
        UserError: the file is not Shift-JIS; names line and probable encoding.
    """
    content = path.read_bytes()
    try:
        text = content.decode("cp932")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        problem = f"{path}:{line}: not Shift-JIS (byte 0x{content[error.start]:02x})"
    else:
        match = _HALF_WIDTH_KANA.search(text)
        if not match:
            return text
        line = text[: match.start()].count("\n") + 1
        problem = f"{path}:{line}: not Shift-JIS"
    for name in ("utf-8", "euc_jp"):
        try:
            content.decode(name)
        except UnicodeDecodeError:
            continue
        problem += f", it looks like {name.replace('_', '-').upper()}"
        break
    raise UserError(
        f"{problem}; use the file as NINJAL delivers it, or convert it with 'iconv -t "
        "CP932'"
    )


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
    return [_join(utterance) for utterance in utterances]


def _join(segments: list[Segment]) -> Segment:
    text = Text(
        *map("".join, zip(*(segment.text for segment in segments), strict=True))
    )
    return Segment(segments[0].start, segments[-1].end, text)


class _Set:
    """The tables and dropped utterances of a set while the corpus is read."""

    def __init__(self) -> None:
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
            utterance = f"{recording}_{start:07d}_{end:07d}"
            if problem:
                self.drop(utterance, *problem)
            elif MASK in one.text.disfluent:
                self.drop(utterance, "masked speech", text)
            elif not text:
                self.drop(utterance, "empty text", one.text.disfluent)
            elif end <= start:
                self.drop(utterance, "no duration", text)
            elif one.end > seconds + MAX_OVERSHOOT_SECONDS:
                detail = f"ends at {one.end:.2f} s of {seconds:.2f} s in {wav}"
                self.drop(utterance, "past the end of the recording", detail)
            else:
                times = f"{recording} {one.start:.3f} {one.end:.3f}"
                self.tables["segments"][utterance] = times
                self.tables["utt2spk"][utterance] = recording
                self.tables["utt2lang"][utterance] = "ja"
                self.tables["utt2dur"][utterance] = f"{one.end - one.start:.3f}"
                self.tables["text"][utterance] = text
                self.tables["wav.scp"][recording] = os.path.abspath(wav)

    def drop(self, utterance: str, reason: str, detail: str) -> None:
        self.dropped.append(Dropped(utterance, STAGE, reason, detail))

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
        return (
            f"{root}: no transcript of {name} ({', '.join(talks[:3])}, …); copy the "
            "whole corpus"
        )
    first = f"{one.dropped[0].reason}: {one.dropped[0].detail}" if one.dropped else ""
    return (
        f"{root}: no usable utterance in {name} ({len(one.talks)} talks are "
        f"transcribed); first problem: {first or 'no speech in it'}"
    )
