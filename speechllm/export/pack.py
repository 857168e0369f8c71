"""Exported model as a zip with a manifest (stage 14).

The zip has the files of an exported model folder, further files (results, curves), and
``meta.yaml`` as ESPnet's pack writes it: the files (here with size and SHA-256) and the
environment that it was made in. :func:`unpack` extracts only the files in the manifest,
and checks their size and checksum.
"""

from __future__ import annotations

import errno
import lzma
import os
import platform
import shutil
import struct
import zipfile
import zlib
from collections.abc import Collection
from datetime import datetime
from pathlib import Path, PurePosixPath

import yaml

from speechllm.evaluation.report import git_hash, package_version
from speechllm.pretrained.model_folder import require_no_foreign_links
from speechllm.utils.errors import UserError, reason_of
from speechllm.utils.folders import FolderKind, atomic_directory
from speechllm.utils.io import atomic_open, file_sha256, require_plausible_size
from speechllm.utils.names import LONGEST_FILE_NAME

MANIFEST = "meta.yaml"
UNPACKED = FolderKind("unpacked model", (MANIFEST, "model.safetensors"))
#: What zipfile and YAML raise on damaged content; encrypted entries: RuntimeError.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    struct.error,
    yaml.YAMLError,
    AttributeError,
    KeyError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
)
REQUIRED = ("config.yaml", "model.safetensors")  # files of an exported model


def model_files(model_dir: str | Path) -> dict[str, Path]:
    """Return the files of an exported model by their name in the archive, sorted.

    Hidden files are left out.

    Raises:
        UserError: the folder is missing or not an exported model, or has links that
            lead out of it.
    """
    model_dir = Path(model_dir)
    for name in REQUIRED:
        if not (model_dir / name).is_file():
            raise UserError(f"{model_dir}: not an exported model, {name} is missing")
    require_no_foreign_links(model_dir)
    files = {}
    for path in sorted(model_dir.rglob("*")):
        name = path.relative_to(model_dir)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            files[name.as_posix()] = path
    return files


def pack(
    model_dir: str | Path,
    output: str | Path,
    include: list[str | Path] = (),
    force: bool = False,
) -> dict:
    """Write an exported model folder and its manifest into a zip.

    Args:
        model_dir: folder that ``speechllm.bin.export_model`` wrote.
        output: the zip; written atomically.
        include: further files, put at the top of the archive under their own names.
        force: replace an existing zip.

    Returns:
        The manifest.

    Raises:
        UserError: the zip exists, a file is missing, or two files have the same name
            in the archive.
    """
    output = Path(output)
    if output.exists() and not force:
        raise UserError(f"{output}: exists already; --force replaces it")
    files = model_files(model_dir)
    for path in map(Path, include):
        if not path.is_file():
            raise UserError(f"{path}: no such file to include")
        if path.name in files:
            raise UserError(f"{path}: the archive already has a file {path.name}")
        files[path.name] = path
    if MANIFEST in files:
        raise UserError(
            f"{files[MANIFEST]}: the name is reserved for the manifest; rename it"
        )
    manifest = {
        "files": {
            name: {"size": path.stat().st_size, "sha256": file_sha256(path)}
            for name, path in files.items()
        },
        "timestamp": datetime.now().timestamp(),
        "python": platform.python_version(),
        "torch": package_version("torch"),
        "espnet": package_version("espnet"),
        "transformers": package_version("transformers"),
        "speechllm": git_hash(),
    }
    with (
        atomic_open(output, "wb") as stream,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        archive.writestr(MANIFEST, yaml.safe_dump(manifest, sort_keys=False))
        for name, path in files.items():
            weights = path.suffix == ".safetensors"  # do not compress
            kind = zipfile.ZIP_STORED if weights else zipfile.ZIP_DEFLATED
            archive.write(path, name, compress_type=kind)
    return manifest


def unpack(archive: str | Path, output_dir: str | Path, force: bool = False) -> Path:
    """Extract a packed model, checking every file.

    Args:
        archive: a zip made by :func:`pack`.
        output_dir: the folder to make; written atomically.
        force: replace an existing folder.

    Returns:
        The folder.

    Raises:
        UserError: not such a zip, a name outside of the folder, a file that is not in
            the manifest or differs from it, or an existing folder.
    """
    archive, output_dir = Path(archive), Path(output_dir)
    if not archive.is_file():
        raise UserError(f"{archive}: no such file")
    if output_dir.exists() and not force:
        raise UserError(f"{output_dir}: exists already; --force replaces it")
    try:
        with zipfile.ZipFile(archive) as packed:
            entries = {entry.filename: entry for entry in packed.infolist()}
            if MANIFEST not in entries:
                raise UserError(f"{archive}: no {MANIFEST}, not a packed model")
            if len(entries) != len(packed.infolist()):
                raise UserError(f"{archive}: two entries have the same name")
            for name, entry in entries.items():
                place = f"{archive}: {name}"
                require_plausible_size(place, entry.file_size, entry.compress_size)
            manifest = yaml.safe_load(packed.read(MANIFEST))
            if not isinstance(manifest, dict) or not isinstance(
                manifest.get("files"), dict
            ):
                raise UserError(f"{archive}: its {MANIFEST} lists no files")
            listed = manifest["files"]
            names = entries.keys() | listed.keys()
            for name in sorted(names):
                require_safe_name(archive, name, names)
                if name != MANIFEST and name not in listed:
                    raise UserError(f"{archive}: {name} is not in its {MANIFEST}")
                if name not in entries:
                    raise UserError(f"{archive}: {name} of its {MANIFEST} is missing")
            with atomic_directory(output_dir, UNPACKED, [archive]) as temporary:
                for name, entry in entries.items():
                    target = temporary / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    limit = listed[name]["size"] if name in listed else entry.file_size
                    if entry.file_size != limit:
                        raise UserError(
                            f"{archive}: {name} differs from its listed size"
                        )
                    with packed.open(entry) as source, open(target, "wb") as stream:
                        shutil.copyfileobj(source, stream, 1 << 20)
                    if name in listed and file_sha256(target) != listed[name]["sha256"]:
                        raise UserError(f"{archive}: {name} has a wrong checksum")
    except UserError:
        raise
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # a seek before the start
            raise
        raise UserError(f"{archive}: damaged ({error}); download it again") from None
    except _DAMAGED as error:
        reason = reason_of(error)
        raise UserError(f"{archive}: damaged ({reason}); download it again") from None
    return output_dir


def require_safe_name(archive: Path, name: str, names: Collection[str]) -> None:
    """Raise UserError for a name that could be outside of the target folder.

    Args:
        archive: for the message.
        name: of an entry.
        names: of all entries.
    """
    path = PurePosixPath(name)
    unsafe = not isinstance(name, str) or not path.parts or name.endswith("/")
    outside = name.startswith("/") or ".." in path.parts
    if unsafe or outside or "\\" in name or ":" in name:
        raise UserError(f"{archive}: unsafe file name {name!r}; do not trust it")
    if any(len(os.fsencode(part)) > LONGEST_FILE_NAME for part in path.parts):
        raise UserError(f"{archive}: a file name is too long: {name[:40]}…")
    if parent := next((p for p in map(str, path.parents) if p in names), None):
        raise UserError(f"{archive}: {parent} is a file and a folder; do not trust it")
