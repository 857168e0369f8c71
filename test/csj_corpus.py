"""Write small CSJ corpora in the formats of NINJAL's edition, for tests."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import soundfile

# A segment: (start, end, channel, words with their tags)
SegmentSpec = tuple[float, float, str, list[str]]


def write_talk(
    root: Path,
    talk: str,
    segments: list[SegmentSpec],
    part: str = "core",
    seconds: float | None = None,
    editions: tuple[str, ...] = ("sdb", "xml"),
) -> None:
    """Write a talk's transcript in each edition, and its recordings (noise)."""
    if "sdb" in editions:
        path = root / "MORPH" / "SDB" / part / f"{talk}.sdb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sdb(talk, segments).encode("cp932"))
    if "xml" in editions:
        path = root / "XML" / "BaseXML" / part / f"{talk}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(xml(talk, segments).encode("cp932"))
    length = seconds or max(end for _, end, _, _ in segments) + 0.2
    noise = np.random.default_rng(0).normal(0, 0.01, round(16000 * length))
    folder = root / "WAV" / part
    folder.mkdir(parents=True, exist_ok=True)
    for ending in ("-L", "-R") if talk.startswith("D") else ("",):
        soundfile.write(folder / f"{talk}{ending}.wav", noise, 16000)


def sdb(talk: str, segments: list[SegmentSpec]) -> str:
    """The short-unit table: 17 fields a line, as lhotse and Kaldi number them."""
    lines, place = [], 0
    for number, (start, end, channel, words) in enumerate(segments, 1):
        for word_number, word in enumerate(words, 1):
            place += 1
            time = (
                f"{number:04d} {start:09.3f}-{end:09.3f} "
                f"{channel}:-{word_number:03d}-001"
            )
            plain = word.strip("()")
            fields = [
                "SUW",
                f"{place:08d}",
                talk,
                time,
                plain,
                word,
                "ヨミ",
                plain,
                "ヨミ",
            ]
            fields += [plain, "ヨミ", "名詞", "", "", "", "", ""]
            lines.append("\t".join(fields) + "\n")
    return "".join(lines)


def xml(talk: str, segments: list[SegmentSpec]) -> str:
    """The talk's tree down to the short units, with a noise element for colour."""
    lines = [
        '<?xml version="1.0" encoding="Shift_JIS"?>\n',
        f'<Talk TalkID="{talk}" SpeakerID="1" SpeakerSex="男">\n',
    ]
    for number, (start, end, channel, words) in enumerate(segments, 1):
        lines.append(
            f'<IPU IPUID="{number:04d}" Channel="{channel}" '
            f'IPUStartTime="{start:09.3f}" IPUEndTime="{end:09.3f}">\n'
        )
        for word in words:
            transcript = quoteattr(word)
            lines.append(
                f'<LUW LUWID="1"><SUW SUWID="1" OrthographicTranscription={transcript} '
                'PlainOrthographicTranscription="" PhoneticTranscription="">'
                '<TransSUW TransSUWID="1"/></SUW></LUW>\n'
            )
        lines.append('<NonLinguisticSound Type="息"/>\n</IPU>\n')
    return "".join(lines) + "</Talk>\n"
