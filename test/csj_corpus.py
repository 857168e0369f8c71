"""Small CSJ corpora in the formats of NINJAL's editions, for tests."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import soundfile

# A segment: (start, end, channel, words with their tags)
SegmentSpec = tuple[float, float, str, list[str]]


def write_dvd_talk(
    root: Path, disc: str, talk: str, segments: list[SegmentSpec], capitals: bool
) -> None:
    """Write a talk as on the DVDs: its folder holds transcript and recordings."""
    folder = root / disc / talk
    folder.mkdir(parents=True)
    (folder.parent / "00README.txt").write_text("a disc")
    text = sdb(talk, segments).replace("\n", "\r\n")
    ending = ".SDB" if capitals else ".sdb"
    (folder / f"{talk}{ending}").write_bytes(text.encode("cp932"))
    length = max(end for _, end, _, _ in segments) + 0.2
    noise = np.random.default_rng(0).normal(0, 0.01, round(16000 * length))
    for channel in ("-L", "-R") if talk.startswith("D") else ("",):
        name = f"{talk}{channel}.wav"
        soundfile.write(folder / (name.upper() if capitals else name), noise, 16000)


def write_talk(
    root: Path,
    talk: str,
    segments: list[SegmentSpec],
    part: str = "core",
    seconds: float | None = None,
    editions: tuple[str, ...] = ("sdb", "xml"),
) -> None:
    """Write a talk's transcript in each edition, and noise as its recordings."""
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
    """Return the short-unit table: 17 fields per line, as read by lhotse and Kaldi."""
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
    """Return the talk's XML tree down to the short units, with a noise element."""
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


LONG = [
    (0.5, 1.5, "L", ["(F えー)", "それ", "では"]),
    (2.0, 3.0, "L", ["(D は)", "発表", "し", "ます"]),  # pause of 0.5 s: joined
    (3.501, 4.0, "L", ["次", "は"]),  # pause of 0.501 s: a new utterance
    (4.2, 4.6, "L", ["<雑音>"]),  # no speech
    (4.3, 14.2, "L", ["(A シーディー;ＣＤ)", "の", "話"]),  # 10.7 s: ends the utterance
    (14.3, 15.0, "L", ["(R ××)", "さん"]),
    (15.1, 15.5, "L", ["です"]),  # joined with the masked one
    (17.0, 17.4, "L", ["(F うーん)"]),  # empty fluent text
    (18.0, 18.5, "L", ["(W ギーツ;技術)", "・"]),
]
DIALOGUE = [
    (0.0, 1.0, "L", ["こんにちは"]),
    (0.8, 1.2, "R", ["はい"]),
    (1.1, 2.0, "L", ["今日", "は"]),
    (1.6, 3.0, "R", ["(笑 そう", "です", "ね)"]),
    (60.0, 61.0, "R", ["ここ", "は", "無い"]),
]


def write_corpus(root, editions=("sdb", "xml")):
    write_talk(root, "A02F0001", LONG, "noncore", editions=editions)
    write_talk(root, "D01F0002", DIALOGUE, "core", 5.0, editions)
    for number in range(4):
        spec = [(0.0, 0.5, "L", ["はい"]), (2.0, 2.5, "L", [f"話{'一二三四'[number]}"])]
        write_talk(root, f"S0{number}F0003", spec, "noncore", editions=editions)
    for talk in ("A01M0110", "A01M0056", "S00M0112", "A01M0264", "R00M0187"):
        write_talk(root, talk, [(0.1, 1.0, "L", [talk[0], "の話"])], editions=editions)
    return root
