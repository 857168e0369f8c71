"""Text files of corpora: line reading and removal of invisible characters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from speechllm.utils.errors import UserError

# Invisible characters: soft hyphen, zero-width space, word joiner, byte-order mark,
# writing directions. The zero-width (non-)joiner is kept: it is part of the spelling in
# Persian and in Indic scripts.
_HIDDEN = [0x00AD, 0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF]
_HIDDEN += [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0)]
_CLEAN = dict.fromkeys(_HIDDEN, "") | dict.fromkeys(_CONTROLS, " ")
_DAMAGED = "\ufffd"  # replaces a character that an earlier conversion lost


def read_lines(path: str | Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 text file without their line ends.

    Only line feeds end a line. Texts contain carriage returns and U+2028, at which
    ``str.splitlines`` also splits, so that parallel files would get out of step. A
    byte-order mark at the head of the file is skipped.

    Raises:
        UserError: the file does not exist, or a line is not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; unpack the whole corpus")
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                encoding = "utf-8" if number > 1 else "utf-8-sig"
                yield line.decode(encoding).rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}:{number}: not UTF-8 (byte "
                    f"0x{error.object[error.start]:02x}); unpack the corpus again, or "
                    "convert the file with iconv"
                ) from None


def count_lines(path: str | Path) -> int:
    """Count the lines of :func:`read_lines`, also in a file that is not UTF-8."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; unpack the whole corpus")
    with open(path, "rb") as stream:
        return sum(1 for _ in stream)


def clean_text(text: str) -> str:
    """Remove invisible characters and replace white space by single spaces."""
    if not text.isascii() or not text.isprintable():
        text = text.translate(_CLEAN)
    return " ".join(text.split())


def is_damaged(text: str) -> bool:
    """Return True if an earlier conversion lost a character of the text."""
    return _DAMAGED in text
