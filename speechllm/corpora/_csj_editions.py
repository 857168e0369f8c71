"""Editions of CSJ: where transcripts and recordings are, and how transcripts are read.

=======  =====================================  ==================================
edition  transcript                             recording
=======  =====================================  ==================================
sdb      ``MORPH/SDB/{core,noncore}/*.sdb``     ``WAV/{core,noncore}/*.wav``
xml      ``XML/**/{core,noncore}/*.xml``        the same
dvd      ``dvd<n>/<talk>/<talk>.sdb``           ``dvd<n>/<talk>/*.wav``
=======  =====================================  ==================================

The first two are on one drive. Of the third, the 15 discs with talks (``dvd3`` to
``dvd17`` in Kaldi's recipe) are folders of any names; a single disc, and names in
capitals, are read too.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from speechllm.corpora._csj_tags import Text, Word, read_words
from speechllm.utils.errors import UserError

KINDS = "ASMRD"  # first letters of the talks
_PARTS = ("core", "noncore")
_TALK = re.compile(rf"[{KINDS}]\d\d[FM]\d{{4}}$")
_TIME = re.compile(r"(\d+) (\d+(?:\.\d+)?)-(\d+(?:\.\d+)?) ([LR]):")
_DECLARATION = re.compile(rb"^\s*<\?xml[^>]*?encoding=[\"']([\w-]+)[\"'][^>]*\?>")
_HALF_WIDTH_KANA = re.compile("[\uff61-\uff9f]")
_PLACES = {
    "sdb": "MORPH/SDB/**/{core,noncore}/*.sdb",
    "xml": "XML/**/{core,noncore}/*.xml",
    "dvd": "dvd<n>/<talk>/<talk>.sdb",
}


@dataclass
class Segment:
    """Speech between two pauses: start and end in seconds, and its text."""

    start: float
    end: float
    text: Text


def find_transcripts(
    root: Path, edition: str | None = None
) -> tuple[dict[str, Path], str]:
    """Return {talk: transcript} and the edition found.

    Raises:
        UserError: there are no transcripts, or two of the same talk.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder with WAV, MORPH, …")
    wanted = [edition] if edition else list(EDITIONS)
    for name in wanted:
        found: dict[str, Path] = {}
        for path in sorted(_candidates(root, name)):
            talk = path.stem.upper()
            if _TALK.match(talk) and found.setdefault(talk, path) != path:
                raise UserError(f"{path}: {found[talk]} is the same talk; remove one")
        if found:
            return found, name
    places = ", nor ".join(_PLACES[name] for name in wanted)
    there = ", ".join(sorted(path.name for path in root.iterdir())[:5]) or "nothing"
    raise UserError(
        f"{root}: no {places}; give the folder of CSJ that contains WAV, and MORPH or "
        f"XML, or the folders of the DVDs; it contains: {there}"
    )


def find_recording(root: Path, transcript: Path, edition: str, name: str) -> Path:
    """Return the path of a recording, whether it exists or not.

    Args:
        root: folder of the corpus.
        transcript: file of the talk's transcript.
        edition: of the corpus.
        name: talk, and of a dialogue the channel: ``D01F0002-L``.
    """
    if edition != "dvd":
        return root / "WAV" / transcript.parent.name / f"{name}.wav"
    wanted = f"{name}.wav".lower()
    for path in transcript.parent.iterdir():
        if path.name.lower() == wanted:
            return path
    return transcript.parent / f"{name}.wav"


def _candidates(root: Path, edition: str) -> Iterator[Path]:
    if edition == "dvd":
        for pattern in ("*/*", "*/*/*"):
            for path in root.glob(pattern):
                same = path.stem.upper() == path.parent.name.upper()
                if same and path.suffix.lower() == ".sdb":
                    yield path
        return
    folder = root / "MORPH" / "SDB" if edition == "sdb" else root / "XML"
    for part in _PARTS:
        yield from folder.rglob(f"{part}/*.{edition}")


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


EDITIONS = {"sdb": read_sdb, "xml": read_xml, "dvd": read_sdb}


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
            joined[-1] = concatenate([joined[-1], segment])
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


def concatenate(segments: list[Segment]) -> Segment:
    """Join segments into one."""
    text = Text(
        *map("".join, zip(*(segment.text for segment in segments), strict=True))
    )
    return Segment(segments[0].start, segments[-1].end, text)
