"""Frames of MPEG audio (MP3, MP2, MP1) and of AAC in ADTS.

ISO 11172-3 and 13818-3 define the header of a frame, ISO 13818-7 that of ADTS; the
number of frames is in a frame of silence that encoders put first (``Xing``, ``Info``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Read = Callable[[int, int], bytes]  # position, number of bytes

_KBIT_PER_SECOND = {
    (1, 1): "0 32 64 96 128 160 192 224 256 288 320 352 384 416 448",
    (1, 2): "0 32 48 56 64 80 96 112 128 160 192 224 256 320 384",
    (1, 3): "0 32 40 48 56 64 80 96 112 128 160 192 224 256 320",
    (2, 1): "0 32 48 56 64 80 96 112 128 144 160 176 192 224 256",
    (2, 2): "0 8 16 24 32 40 48 56 64 80 96 112 128 144 160",
    (2, 3): "0 8 16 24 32 40 48 56 64 80 96 112 128 144 160",
}
_BITRATES = {key: [*map(int, row.split())] for key, row in _KBIT_PER_SECOND.items()}
_RATES = (44100, 48000, 32000)
_RATE_DIVISOR = {3: 1, 2: 2, 0: 4}  # by the bits of the version: MPEG 1, 2, 2.5
_SEARCHED = 1 << 16  # bytes in which the next frame is searched


@dataclass(frozen=True)
class Frame:
    """Header of a frame.

    Attributes:
        kind: version, layer and sampling rate, which are the same in all frames.
        length: in bytes, with the header.
        samples: per channel.
        rate: in Hz.
    """

    kind: tuple[int, int, int]
    length: int
    samples: int
    rate: int


@dataclass(frozen=True)
class Frames:
    """All frames of a file.

    Attributes:
        count: number of frames with sound.
        stated: their number by the header of the file or of its parts; None: unknown.
        incomplete: the file ends within a frame.
        seconds_per_frame: length of a frame.
    """

    count: int
    stated: int | None
    incomplete: bool
    seconds_per_frame: float


def parse_frame(head: bytes) -> Frame | None:
    """Return the frame that begins with four bytes; None if they are not a header."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = (head[1] >> 3) & 3, 4 - ((head[1] >> 1) & 3)
    bitrate, rate, padding = head[2] >> 4, (head[2] >> 2) & 3, (head[2] >> 1) & 1
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    hertz = _RATES[rate] // _RATE_DIVISOR[version]
    first = version == 3
    bits = 1000 * _BITRATES[1 if first else 2, layer][bitrate]
    if layer == 1:
        length, samples = (12 * bits // hertz + padding) * 4, 384
    else:
        samples = 1152 if first or layer == 2 else 576
        length = samples // 8 * bits // hertz + padding
    return Frame((version, layer, rate), length, samples, hertz)


def find_frame(read: Read, start: int = 0) -> int | None:
    """Return the position of the next frame; None if there is none within 64 KiB.

    Tags (``ID3``) at ``start`` are skipped. A frame right there is followed by another
    one, and a frame further on by three, so that other bytes are not taken for frames.
    """
    start = _skip_id3(read, start)
    block = read(start, _SEARCHED)
    place = block.find(0xFF)
    while place >= 0:
        if _frames_in_a_row(read, start + place, 4 if place else 2):
            return start + place
        place = block.find(0xFF, place + 1)
    return None


def _frames_in_a_row(read: Read, position: int, count: int) -> bool:
    kinds = set()
    for _ in range(count):
        frame = parse_frame(read(position, 4))
        if frame is None:
            return False
        kinds.add(frame.kind)
        position += frame.length
    return len(kinds) == 1


def walk_mpeg(read: Read, size: int) -> Frames:
    """Follow the frames of a file from the first to the last.

    Args:
        read: reader of a file in which :func:`find_frame` finds a frame.
        size: of the file in bytes.
    """
    position, first = _first_frame(read)
    count, stated, incomplete = 0, None, False
    fresh = True  # at the beginning of a part
    while position < size:
        head = read(position, 4)
        frame = parse_frame(head)
        if frame is None or frame.kind != first.kind:
            if len(head) < 4 and head[:1] == b"\xff":
                incomplete = True
                break
            found = find_frame(read, position)
            if found is None:
                break  # a tag, zeros
            fresh, position = True, found
            frame = parse_frame(read(position, 4))
            assert frame is not None
            if frame.kind != first.kind:  # FFmpeg follows a change of the rate
                return Frames(count, None, False, first.samples / first.rate)
        if position + frame.length > size:
            incomplete = True
            break
        if fresh or count == stated:
            number = _stated_frames(read(position, min(frame.length, 256)))
            fresh = False
            if number is not None:
                stated = (stated or 0) + number
                position += frame.length
                continue
        count += 1
        position += frame.length
    return Frames(count, stated, incomplete, first.samples / first.rate)


def mpeg_seconds(read: Read, size: int) -> float:
    """Return the length of a file by the number of frames, stated or counted.

    The arguments are those of :func:`walk_mpeg`. The silence that the encoder adds at
    both ends, some hundredths of a second, is part of it.
    """
    position, first = _first_frame(read)
    stated = _stated_frames(read(position, min(first.length, 256)))
    if stated is not None:
        return stated * first.samples / first.rate
    frames = walk_mpeg(read, size)
    return frames.count * frames.seconds_per_frame


def _first_frame(read: Read) -> tuple[int, Frame]:
    """Return position and header of the first frame, which there is."""
    position = find_frame(read)
    assert position is not None
    first = parse_frame(read(position, 4))
    assert first is not None
    return position, first


def walk_adts(read: Read, size: int) -> bool:
    """Follow the frames of an AAC file; return True if it ends within a frame."""
    position = 0
    while position < size:
        head = read(position, 6)
        if head[0] != 0xFF or (len(head) > 1 and head[1] & 0xF6 != 0xF0):
            return False  # a tag, zeros
        if len(head) < 6:
            return True
        length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
        if length < 7:
            return False
        position += length
    return position > size


def _skip_id3(read: Read, position: int) -> int:
    """Return the position after ID3v2 tags."""
    while (head := read(position, 10))[:3] == b"ID3" and len(head) == 10:
        length = 0
        for byte in head[6:]:
            length = length << 7 | byte & 0x7F
        position += 10 + length + (10 if head[5] & 0x10 else 0)
    return position


def _stated_frames(frame: bytes) -> int | None:
    """Return the number of frames that a frame with a Xing header states."""
    for name in (b"Xing", b"Info"):
        place = frame.find(name, 4, 48)
        if place > 0 and len(frame) >= place + 12:
            has_count = int.from_bytes(frame[place + 4 : place + 8], "big") & 1
            if has_count:
                return int.from_bytes(frame[place + 8 : place + 12], "big")
    return None
