"""Checks of a recording's container: cut-off files, joined files, wrong headers.

Decoders take a file that ends too early, or that another one follows, as a shorter
recording without an error. These checks follow the structure of a container (chunks,
pages, boxes, elements, frames) from its beginning to the end of the file, without
decoding; the formats are described in their specifications (RIFF, EBU 3306, RFC 3533,
RFC 8794, ISO 14496-12, …). Formats without a structure of their own are not checked.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from speechllm.audio.mpeg_frames import find_frame, mpeg_seconds, walk_adts, walk_mpeg
from speechllm.utils.errors import UserError

_UNKNOWN_LENGTH = 0x7FFF0000  # from here on: sox and ffmpeg writing to a pipe
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_W64_HEADER = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675  # of Matroska
_TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN")


@dataclass(frozen=True)
class Container:
    """Result of the checks.

    Attributes:
        cut_off: reason why the recording counts as cut off; None if it is whole.
        refused: reason why it is not read at all, although it can be decoded.
        needs_ffmpeg: libsndfile would read it wrongly or in part.
    """

    cut_off: str | None = None
    refused: str | None = None
    needs_ffmpeg: bool = False


class FileBytes:
    """Random access to the bytes of a file."""

    def __init__(self, handle: int):
        self.handle = handle
        self.size = os.fstat(handle).st_size

    def read(self, position: int, count: int) -> bytes:
        """Return up to ``count`` bytes from ``position`` on."""
        return os.pread(self.handle, count, position)

    def unpack(self, form: str, position: int) -> tuple:
        """Return numbers in a format of :mod:`struct`.

        Raises:
            struct.error: the file ends before.
        """
        return struct.unpack(form, self.read(position, struct.calcsize(form)))


class MemoryBytes(FileBytes):
    """Random access to the bytes of a file in memory."""

    def __init__(self, content: bytes):
        self.content = content
        self.size = len(content)

    def read(self, position: int, count: int) -> bytes:
        """Return up to ``count`` bytes from ``position`` on."""
        return self.content[position : position + count]


def check_content(content: bytes) -> Container:
    """Check the container of a file in memory."""
    return _check_bytes(MemoryBytes(content))


def check_container(path: str) -> Container:
    """Check the container of a file, whose content tells the format.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        status = os.stat(path)
        return _check(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def seconds_by_frames(path: str) -> float | None:
    """Return the length of an MP3 file by its frames; None for other files."""
    with open(path, "rb") as stream:
        data = FileBytes(stream.fileno())
        if _find_check(data) is not _check_mpeg:
            return None
        return mpeg_seconds(data.read, data.size)


@lru_cache(maxsize=1024)
def _check(path: str, size: int, time: int) -> Container:
    """Check a file of a size and modification time."""
    handle = os.open(path, os.O_RDONLY)
    try:
        return _check_bytes(FileBytes(handle))
    finally:
        os.close(handle)


def _check_bytes(data: FileBytes) -> Container:
    check = _find_check(data)
    if check is None:
        return Container()
    try:
        return check(data)
    except struct.error:  # the file ends within its header
        return Container(cut_off="the file ends within its header")


def _find_check(data: FileBytes) -> Callable[[FileBytes], Container] | None:
    head = data.read(0, 1024)
    for magic, check in (
        (b"RIFF....WAVE", _check_wav),
        (b"RIFF....AVI ", _check_avi),
        (b"RF64....WAVE", _check_rf64),
        (b"FORM....AIF", _check_aiff),
        (b".snd", _check_au),
        (b"caff", _check_caf),
        (_W64_HEADER, _check_w64),
        (_ASF_HEADER, _check_asf),
        (b"fLaC", _check_flac),
        (b"OggS", _check_ogg),
        (b"\x1aE\xdf\xa3", _check_matroska),
        (b"FLV\x01", _check_flv),
    ):
        wild = magic.startswith((b"RIFF", b"RF64", b"FORM"))
        if len(head) >= len(magic) and all(
            ours == theirs or (wild and 4 <= place < 8)
            for place, (ours, theirs) in enumerate(zip(magic, head))
        ):
            return check
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"styp"):
        return _check_mp4
    for packet, first in ((188, 0), (192, 4)):
        if len(head) > 4 * packet and set(head[first : 4 * packet : packet]) == {0x47}:
            return lambda data: _check_transport_stream(data, packet, first)
    if find_frame(data.read) is not None:
        return _check_mpeg
    if len(head) > 7 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return _check_adts
    return None


def _shorter(stated: int, found: int) -> Container:
    return Container(
        cut_off=f"the header states {stated} bytes but the file has only {found}"
    )


def _within(what: str) -> Container:
    return Container(cut_off=f"the file ends within {what}")


def _ends_at(data: FileBytes, end: int, magic: bytes) -> Container:
    """Return the result for a container that ends at ``end``."""
    if end > data.size:
        return _shorter(end, data.size)
    if data.read(end, len(magic)) == magic:
        return Container(refused=_FOLLOWED)
    return Container()


_FOLLOWED = "another recording follows in the same file; split it into two files"


def _check_wav(data: FileBytes) -> Container:
    bytes_per_second = 1
    for chunk in _chunks(data, 12):
        kind, length, position = chunk
        if kind == b"fmt ":
            bytes_per_second = data.unpack("<I", position + 8)[0] or 1
        if kind == b"data":
            break
    else:
        return Container()  # libsndfile and FFmpeg name the fault
    available = data.size - position
    if length >= _UNKNOWN_LENGTH:
        return Container(needs_ffmpeg=available > length)
    if length == 0 and available:
        ends = [p + n for _, n, p in _chunks(data, position)]
        return Container(needs_ffmpeg=not (ends and ends[-1] == data.size))
    if length - available > position:  # less: a recorder counted the header too
        expected, found = length / bytes_per_second, available / bytes_per_second
        return Container(
            cut_off=f"the header states {expected:.2f} s "
            f"but the file has only {found:.2f} s"
        )
    if length > available:
        return Container(needs_ffmpeg=True)
    end = position + length
    for kind, size, place in _chunks(data, end + length % 2):
        if kind in (b"RIFF", b"RF64"):
            return Container(refused=_FOLLOWED)
        end = place + size
    left = data.size - end
    if left >= max(bytes_per_second, 2) and bytes_per_second > 1:
        head = data.read(end, 12)
        if not head.startswith(_TAGS) and any(data.read(end, 1 << 16)):
            return Container(
                refused=f"{left} bytes follow the {length / bytes_per_second:.2f} s "
                "that its header states; write the file again with a right header"
            )
    return Container()


def _chunks(data: FileBytes, position: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, length and position of the content of RIFF chunks.

    The end of the file, or bytes that are not a chunk's name, end the list.
    """
    while position + 8 <= data.size:
        kind, length = data.unpack("<4sI", position)
        if not _is_name(kind):
            return
        yield kind, length, position + 8
        position += 8 + length + length % 2


def _is_name(kind: bytes) -> bool:
    return all(32 <= letter < 127 for letter in kind)


def _check_avi(data: FileBytes) -> Container:
    for kind, length, position in _chunks(data, 0):
        if kind == b"RIFF" and 0 < length < 0xFFFFFFFF:
            if position + length > data.size:
                return _shorter(position + length, data.size)
    return Container()


def _check_rf64(data: FileBytes) -> Container:
    kind, _, length = data.unpack("<4sIQ", 12)
    if kind != b"ds64" or length in (0, 2**64 - 1):
        return Container()
    return _ends_at(data, length + 8, b"RF64")


def _check_aiff(data: FileBytes) -> Container:
    length = data.unpack(">I", 4)[0]
    if length == 0 or length >= _UNKNOWN_LENGTH:
        return Container()
    return _ends_at(data, length + 8, b"FORM")


def _check_au(data: FileBytes) -> Container:
    offset, length = data.unpack(">II", 4)
    if length == 0xFFFFFFFF:
        return Container()
    return _ends_at(data, offset + length, b".snd")


def _check_caf(data: FileBytes) -> Container:
    position = 8
    while position + 12 <= data.size:
        kind, length = data.unpack(">4sq", position)
        if not _is_name(kind) or (kind == b"data" and length == -1):
            return Container()
        position += 12 + max(length, 0)
    return _ends_at(data, position, b"caff")


def _check_w64(data: FileBytes) -> Container:
    length = data.unpack("<Q", 16)[0]
    if length in (0, 2**64 - 1):
        return Container()
    return _ends_at(data, length, _W64_HEADER)


def _check_asf(data: FileBytes) -> Container:
    position = 0
    while position + 24 <= data.size:
        length = data.unpack("<Q", position + 16)[0]
        if length < 24:  # a live stream states none
            return Container()
        position += length
    return _ends_at(data, position, _ASF_HEADER)


def _check_flac(data: FileBytes) -> Container:
    """Search for the header of a second stream; libsndfile notices a cut."""
    total = data.unpack(">Q", 18)[0] & 0xFFFFFFFFF
    step, position = 1 << 20, 42
    while position < data.size:
        block = data.read(position, step + 8)
        if b"fLaC\x00\x00\x00\x22" in block or b"fLaC\x80\x00\x00\x22" in block:
            return Container(needs_ffmpeg=True)
        position += step
    return Container(needs_ffmpeg=total == 0)  # unknown, written to a pipe


def _check_ogg(data: FileBytes) -> Container:
    position, started, chained = 0, False, False
    while position < data.size:
        head = data.read(position, 282)
        if head[:4] != b"OggS"[: len(head)]:
            break  # a tag or zeros
        if len(head) < 27 or len(head) < 27 + head[26]:
            return _within("a page")
        begins = bool(head[5] & 2)
        chained |= begins and started
        started |= not begins
        position += 27 + head[26] + sum(head[27 : 27 + head[26]])
        if position > data.size:
            return _within("a page")
    return Container(needs_ffmpeg=chained)


def _check_matroska(data: FileBytes) -> Container:
    position = 0
    while position < data.size:
        identifier, length, content = _ebml_element(data, position)
        if identifier is None:
            return Container() if position else _within("its header")
        end = content + (length or 0)
        if identifier == _SEGMENT and length is not None:
            return _ends_at(data, end, b"\x1aE\xdf\xa3")
        if identifier not in (_SEGMENT, _CLUSTER) and length is None:
            return Container()  # no such element may be of unknown length
        if end > data.size:
            return _within("a cluster")
        position = end
    return Container()


def _ebml_element(data: FileBytes, position: int) -> tuple[int | None, int | None, int]:
    """Return identifier (None: not an element), length (None: unknown) and content.

    Raises:
        struct.error: the file ends within the element's header.
    """
    head = data.read(position, 12)
    width = 9 - head[0].bit_length()
    if width > 4:
        return None, None, position
    if len(head) <= width or len(head) < width + 9 - head[width].bit_length():
        raise struct.error
    size = 9 - head[width].bit_length()
    if size > 8:
        return None, None, position
    identifier = int.from_bytes(head[:width], "big")
    length = int.from_bytes(head[width : width + size], "big") - (1 << 7 * size)
    unknown = length == (1 << 7 * size) - 1
    return identifier, None if unknown else length, position + width + size


def _check_mp4(data: FileBytes) -> Container:
    position, found = 0, set()
    while position + 8 <= data.size:
        length, kind = data.unpack(">I4s", position)
        if not _is_name(kind) or (length < 8 and length > 1):
            break  # not a box
        if kind in found and kind == b"ftyp":
            return Container(refused=_FOLLOWED)
        found.add(kind)
        if length == 0:
            return Container()  # up to the end of the file
        if length == 1:
            length = data.unpack(">Q", position + 8)[0]
        position += length
        if position > data.size:
            return _shorter(position, data.size)
    return Container()


def _check_flv(data: FileBytes) -> Container:
    position = data.unpack(">I", 5)[0] + 4
    while position < data.size:
        head = data.read(position, 11)
        if head[:3] == b"FLV":
            return Container(refused=_FOLLOWED)
        if head[0] & 0x1F not in (8, 9, 18):
            break
        position += 11 + int.from_bytes(head[1:4], "big")
        if len(head) < 11 or position > data.size:
            return _within("a tag")
        position += 4
    return Container()


def _check_transport_stream(data: FileBytes, packet: int, first: int) -> Container:
    rest = data.size % packet
    in_step = data.read(data.size - rest - packet + first, 1) == b"\x47"
    return _within("a packet") if rest and in_step else Container()


def _check_mpeg(data: FileBytes) -> Container:
    frames = walk_mpeg(data.read, data.size)
    if frames.incomplete:
        return _within("a frame")
    if frames.stated is not None and frames.count < frames.stated - 1:
        seconds = frames.seconds_per_frame
        return Container(
            cut_off=f"the header states {frames.stated * seconds:.2f} s "
            f"but the file has only {frames.count * seconds:.2f} s"
        )
    return Container()


def _check_adts(data: FileBytes) -> Container:
    return _within("a frame") if walk_adts(data.read, data.size) else Container()
