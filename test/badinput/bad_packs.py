"""Damaged and malicious packs, and folders that cannot be packed."""

from __future__ import annotations

import functools
import io
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from bad_case import SILENT, Case, Outcome, Place, either, passes, refused


def cases() -> Iterator[Case]:
    """Yield zips for ``--unpack``, and folders and files for ``--model``."""
    yield from zips()
    yield from packing()


@functools.cache
def packed(model: Path) -> bytes:
    """Return the shared model as a zip."""
    import tempfile

    from speechllm.export.pack import pack

    with tempfile.TemporaryDirectory() as folder:
        pack(model, Path(folder) / "model.zip")
        return (Path(folder) / "model.zip").read_bytes()


UNPACK = ["speechllm.bin.pack", "--unpack", "model.zip", "--output", "new"]


def zips() -> Iterator[Case]:
    """Yield damaged and malicious zips."""

    def case(name: str, change: Callable[[bytes], bytes], strict: bool = True) -> Case:
        def build(place: Place) -> list[str]:
            place.write("model.zip", change(packed(place.model)))
            return UNPACK

        def same(outcome: Outcome) -> str:
            new = outcome.place.folder / "new"
            for path in outcome.place.model.rglob(
                "[!.]*"
            ):  # packs have no hidden files
                copy = new / path.relative_to(outcome.place.model)
                if path.is_file() and copy.read_bytes() != path.read_bytes():
                    return f"{copy} differs"
            return ""

        check = refused("model.zip")
        return Case(
            "packs", name, build, check if strict else either(check, passes(same))
        )

    for seed in range(60):

        def flip(data: bytes, seed=seed) -> bytes:
            generator = np.random.default_rng(seed)
            changed = bytearray(data)
            for place in generator.integers(0, len(data), 20):
                changed[place] ^= int(generator.integers(1, 256))
            if seed % 2:  # in the directory at the end
                place = len(data) - 1 - int(generator.integers(0, 1500))
                changed[place] ^= 0x5A
            return bytes(changed)

        yield case(f"flipped bytes, seed {seed}", flip, strict=False)
    for share in (0, 1, 20, 50, 80, 99):
        yield case(f"cut at {share} %", lambda d, s=share: d[: len(d) * s // 100])
    yield case("random bytes", lambda d: bytes(range(256)) * 50)
    yield case("twice", lambda d: d + d, strict=False)
    yield case("with junk before it", lambda d: b"junk" * 99 + d, strict=False)

    def made(entries: dict[str, bytes], listed: dict | None = None) -> bytes:
        import hashlib

        import yaml

        stream = io.BytesIO()
        files = {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in entries.items()
        }
        manifest = {"files": files if listed is None else listed}
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("meta.yaml", yaml.safe_dump(manifest))
            for name, data in entries.items():
                archive.writestr(name, data)
        return stream.getvalue()

    for name in ("../evil", "/tmp/badinput-evil", "a/../../evil", "..", "a\\..\\evil",
                 "C:evil", "./evil", "a//evil", "evil/", "\u202eevil", "a" * 300,
                 "meta.yaml/x", "con\nfig"):  # fmt: skip
        strict = name not in ("./evil", "a//evil", "\u202eevil", "con\nfig")
        entries = {"config.yaml": b"{}", "model.safetensors": b"x", name: b"evil"}
        data = made(entries)

        def build(place: Place, data=data) -> list[str]:
            place.write("model.zip", data)
            return UNPACK

        check = refused("model.zip")
        yield Case(
            "packs", f"entry {name[:30]!r}", build,
            check if strict else either(check, passes()),
        )  # fmt: skip
    manifests = {
        "no files": {}, "files of a list": [],
        "sizes of text": {"a": {"size": "x", "sha256": "y"}},
        "entries of null": {"a": None}, "entries of numbers": {"a": 5},
        "numbers as names": {5: {"size": 1, "sha256": "y"}},
        "null as a name": {None: {"size": 1, "sha256": "y"}},
        "negative size": {"a": {"size": -1, "sha256": "y"}},
    }  # fmt: skip
    for name, listed in manifests.items():

        def build(place: Place, listed=listed) -> list[str]:
            place.write("model.zip", made({"a": b"x"}, listed))
            return UNPACK

        yield Case("packs", f"manifest with {name}", build, refused("model.zip"))

    def manifest(text: bytes) -> Callable[[Place], list[str]]:
        def build(place: Place) -> list[str]:
            stream = io.BytesIO()
            with zipfile.ZipFile(stream, "w") as archive:
                archive.writestr("meta.yaml", text)
            place.write("model.zip", stream.getvalue())
            return UNPACK

        return build

    for name, text in {
        "Latin-1": b"\xe9", "a python tag": b"a: !!python/name:os.system\n",
        "empty": b"", "a list": b"- 1\n", "deep": b"[" * 5000, "NUL": b"a: \0",
    }.items():  # fmt: skip
        yield Case("packs", f"meta.yaml: {name}", manifest(text), refused("model.zip"))

    def bomb(place: Place) -> list[str]:
        place.write("model.zip", made({
            "config.yaml": b"{}", "model.safetensors": bytes(1 << 28),
        }))  # fmt: skip
        return UNPACK

    def small(outcome: Outcome) -> str:
        path = outcome.place.folder / "new/model.safetensors"
        size = path.stat().st_size if path.exists() else 0
        if size > 1 << 27:
            return f"{SILENT}: 256 MiB from {outcome.place.folder / 'model.zip'}"
        return refused("model.zip")(outcome)

    yield Case("packs", "a bomb of 256 MiB", bomb, small)

    def symlink(place: Place) -> list[str]:
        stream = io.BytesIO(made({"config.yaml": b"{}", "model.safetensors": b"x"}))
        with zipfile.ZipFile(stream, "a") as archive:
            entry = zipfile.ZipInfo("link")
            entry.external_attr = 0o120777 << 16
            archive.writestr(entry, "../user")
        place.write("model.zip", stream.getvalue())
        return UNPACK

    yield Case("packs", "a link", symlink, refused("model.zip"))

    def encrypted(data: bytes) -> bytes:
        place = data.index(b"PK\x01\x02")
        data = bytearray(data)
        data[place + 8] |= 1
        return bytes(data)

    yield case("encrypted", encrypted)


def packing() -> Iterator[Case]:
    """Yield model folders and files that cannot be packed."""
    for name, line in {
        "a missing model": ["--model", "no-such"],
        "a file as model": ["--model", "good.wav"],
        "an empty folder": ["--model", "wav"],
        "a missing file": ["--model", "{model}", "--include", "no-such"],
        "a folder as file": ["--model", "{model}", "--include", "wav"],
        "a name twice": ["--model", "{model}", "--include", "good.wav", "good.wav"],
        "the manifest's name": ["--model", "{model}", "--include", "meta.yaml"],
        "a FIFO as file": ["--model", "{model}", "--include", "fifo"],
    }.items():

        def build(place: Place, line=line) -> list[str]:
            place.write("meta.yaml", "a: 1\n")
            os.mkfifo(place.folder / "fifo")
            given = [part.format(model=place.model) for part in line]
            return ["speechllm.bin.pack", *given, "--output", "new.zip"]

        yield Case("packs", f"pack {name}", build, refused())

    for name, target in {
        "the user's file": "user/notes.txt",
        "the user's folder": "user",
        "nothing": "nowhere",
    }.items():

        def linked(place: Place, target=target) -> list[str]:
            shutil.copytree(place.model, place.folder / "m")
            os.symlink(place.user.parent / target, place.folder / "m" / "notes")
            return ["speechllm.bin.pack", "--model", "m", "--output", "new.zip"]

        yield Case("packs", f"pack a link to {name}", linked, refused("m/notes"))
