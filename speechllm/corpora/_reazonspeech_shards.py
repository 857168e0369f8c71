"""ReazonSpeech on its server and on disk: lists of clips, tar shards, their members."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Set
from pathlib import Path
from typing import NamedTuple

from speechllm.corpora._download import download
from speechllm.utils.errors import UserError, reason_of
from speechllm.utils.io import atomic_open, unpack_tar

URL = "https://corpus.reazon-research.org"


class Size(NamedTuple):
    """A size of the corpus: its version's folder, its list and number of shards."""

    folder: str
    table: str
    shards: int

    @property
    def shard_names(self) -> list[str]:
        """Names of the shards: ``000.tar``, … in hexadecimal."""
        return [f"{number:03x}.tar" for number in range(self.shards)]


# As in the loading script of the corpus on the hub.
SIZES = {
    "tiny": Size("reazonspeech-v2", "tiny.tsv", 1),
    "small": Size("reazonspeech-v2", "small.tsv", 12),
    "medium": Size("reazonspeech-v2", "medium.tsv", 116),
    "large": Size("reazonspeech-v2", "large.tsv", 579),
    "all": Size("reazonspeech-v2", "all.tsv", 4096),
    "small-v1": Size("reazonspeech-v1", "small.tsv", 1),
    "medium-v1": Size("reazonspeech-v1", "medium.tsv", 64),
    "all-v1": Size("reazonspeech-v1", "all.tsv", 4096),
}
_BLOCK_BYTES = 512  # of tar files
_STREAM_INFO = 26  # bytes of a FLAC file up to the number of its samples


def split_recording(recording: str) -> tuple[str, int, int]:
    """Split a clip's value of ``wav.scp`` into path, offset and size in bytes.

    The size of a clip that is a file of its own is 0.
    """
    path, _, span = recording.rpartition(":")
    if not path.endswith(".tar"):
        return recording, 0, 0
    offset, size = span.split("+")
    return path, int(offset), int(size)


def join_recordings(recordings: list[str]) -> str:
    """Return the recording of clips of one shard in sequence."""
    first, *others = recordings
    return ",".join([first, *(one.rpartition(":")[2] for one in others)])


def flac_seconds(recording: str) -> float:
    """Return the length of a FLAC clip by its header.

    Raises:
        UserError: it is not FLAC, or its header does not state the length.
    """
    path, offset, _ = split_recording(recording)
    with open(path, "rb") as stream:
        stream.seek(offset)
        head = stream.read(_STREAM_INFO)
    # "fLaC", block header (4), block and frame sizes (10), then 20 bits sampling rate,
    # 3 channels, 5 bits per sample, 36 samples
    fields = int.from_bytes(head[18:26], "big")
    rate, samples = fields >> 44, fields & ((1 << 36) - 1)
    if head[:4] != b"fLaC" or not rate or not samples:
        raise UserError(
            f"{recording}: not a FLAC file whose header states its length; clips of "
            "other formats cannot be joined"
        )
    return samples / rate


def download_reazonspeech(root: str | Path, size: str, url: str = URL) -> Path:
    """Download the list and the shards of a size, resumed after an interruption.

    A file is complete if it has the size that the server states; shards are also read
    from end to end as tar files. The publisher gives no checksums.

    Args:
        root: folder for ``reazonspeech-v2/tsv`` and ``reazonspeech-v2/data``.
        size: one of :data:`SIZES`.
        url: address of the server or of a mirror.

    Returns:
        The folder of the version, ``reazonspeech-v2``.

    Raises:
        UserError: a file cannot be downloaded, or a shard is damaged.
    """
    one = SIZES[size]
    folder = Path(root) / one.folder
    place = f"{url.rstrip('/')}/{one.folder}"
    print(f"{size}: {one.shards:,} shards from {place} into {folder}", flush=True)
    download(f"{place}/tsv/{one.table}", folder / "tsv" / one.table)
    for name in one.shard_names:
        shard = folder / "data" / name
        fresh = not shard.exists()
        download(f"{place}/data/{name}", shard)
        if fresh:
            list_clips(shard)
    return folder


def find_table(root: Path, size: str) -> Path:
    """Return the list of a size.

    Raises:
        UserError: there is none; names the sizes that are there.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder of ReazonSpeech")
    places = _tables(root, size)
    for path in places:
        if path.is_file():
            return path
    sizes = [name for name in SIZES if any(p.is_file() for p in _tables(root, name))]
    others = ", nor ".join(str(path) for path in places[1:])
    raise UserError(
        f"{places[0]}: not found, nor {others}; {root} has the TSV of: "
        f"{', '.join(sizes) or 'no size'}"
    )


def _tables(root: Path, size: str) -> list[Path]:
    one = SIZES[size]
    places = [root / f"{size}.tsv", root / "tsv" / f"{size}.tsv"]
    places.append(root / one.folder / "tsv" / one.table)
    if root.resolve().name == one.folder:
        places.append(root / "tsv" / one.table)
    return places


class Audio(NamedTuple):
    """Audio of the clips: in shards, or as files.

    Attributes:
        shards: tar files to read the clips in; empty if they are files.
        folder: of the files.
        missing: names of the shards of the size that are not there.
    """

    shards: list[Path]
    folder: Path
    missing: list[str]

    def file(self, name: str) -> str:
        """Return the path of a clip that is a file of its own; empty without one."""
        path = f"{self.folder}/{name}"
        return path if os.path.isfile(path) else ""

    def clips(self) -> Iterator[tuple[str, str]]:
        """Yield the clips within the shards, with their values of ``wav.scp``.

        Raises:
            UserError: a shard is damaged.
        """
        from tqdm import tqdm

        for shard in tqdm(self.shards, desc="read shards", unit="tar", mininterval=1):
            yield from list_clips(shard).items()


def find_audio(
    table: Path, size: str, wanted: Set[str], unpack_dir: str | Path | None
) -> Audio:
    """Find the audio of clips: in shards, in unpacked shards, or as files.

    Args:
        table: the list that the clips are from; audio is in ``data`` next to it or to
            its folder ``tsv``, or directly there.
        size: of the list.
        wanted: shards of the clips, without ``.tar``.
        unpack_dir: folder to unpack shards into; None reads clips within the shards.

    Raises:
        UserError: there is no audio, or a shard to be unpacked is damaged.
    """
    root = table.parent.parent if table.parent.name == "tsv" else table.parent
    data = root / "data" if (root / "data").is_dir() else root
    names = [n for n in SIZES[size].shard_names if n.removesuffix(".tar") in wanted]
    shards = sorted(data.glob("*.tar"))
    if not shards:
        if not any(entry.is_dir() and entry.name != "tsv" for entry in data.iterdir()):
            raise UserError(
                f"{data}: neither shards (000.tar, …) nor their unpacked folders; "
                "download the shards, or give --download true"
            )
        folder = data.resolve()
        return Audio([], folder, [n for n in names if not (folder / n[:-4]).is_dir()])
    shards = [shard for shard in shards if shard.stem in wanted] or shards
    present = {shard.name for shard in shards}
    missing = [name for name in names if name not in present]
    if unpack_dir is None:
        return Audio(shards, data, missing)
    from tqdm import tqdm

    for shard in tqdm(shards, desc="unpack shards", unit="tar", mininterval=1):
        unpack_shard(shard, Path(unpack_dir))
    return Audio([], Path(unpack_dir).resolve(), missing)


def list_clips(shard: str | Path) -> dict[str, str]:
    """Return the clips' values of ``wav.scp``; check that the shard is complete.

    Raises:
        UserError: it is not a file, or not a complete, uncompressed tar file of folders
            and regular files.
    """
    path = os.path.abspath(shard)
    if not os.path.isfile(path):
        raise UserError(f"{shard}: not a file; download it again")
    clips: dict[str, str] = {}
    end = 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = os.path.normpath(member.name)
                plain = member.isdir() or (member.isreg() and not member.issparse())
                if not plain or name.startswith(("../", "/")):
                    raise tarfile.ExtractError(
                        f"{member.name}: a link, a device or outside of the folder"
                    )
                if member.size:
                    clips[name] = f"{path}:{member.offset_data}+{member.size}"
                blocks = -(-member.size // _BLOCK_BYTES)
                end = member.offset_data + blocks * _BLOCK_BYTES
                archive.members = []  # which tarfile keeps
        with open(path, "rb") as stream:
            stream.seek(end)
            if stream.read(_BLOCK_BYTES) != bytes(_BLOCK_BYTES):
                raise tarfile.ReadError("it ends without the mark of the end")
    except (tarfile.TarError, EOFError) as error:
        raise UserError(
            f"{shard}: damaged or incomplete ({reason_of(error)}); remove it and "
            "download it again"
        ) from None
    return clips


def unpack_shard(shard: Path, folder: Path) -> None:
    """Unpack a tar file once; a marker in ``folder`` records that it is complete.

    Raises:
        UserError: the file is damaged or incomplete, or a member would be written
            outside ``folder``.
    """
    if not shard.is_file():
        raise UserError(f"{shard}: not a file; download it again")
    marker = folder / f".{shard.stem}.done"
    state = f"{shard.stat().st_size}\n"
    if marker.is_file() and marker.read_text() == state:
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        unpack_tar(shard, folder)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(
            f"{shard}: cannot be unpacked ({error}); download it again"
        ) from None
    with atomic_open(marker) as stream:
        stream.write(state)
