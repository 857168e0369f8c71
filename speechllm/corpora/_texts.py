"""Text files of corpora: lines that part at line feeds only, without hidden marks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from speechllm.utils.errors import UserError

# Marks that nobody sees or hears: soft hyphen, zero-width space and joiner of words,
# byte-order mark, directions of writing. The zero-width (non-)joiner stays: it is
# spelling in Persian and in Indic scripts.
_HIDDEN = [0x00AD, 0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF]
_HIDDEN += [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0)]
_CLEAN = dict.fromkeys(_HIDDEN, "") | dict.fromkeys(_CONTROLS, " ")
_DAMAGED = "\ufffd"  # stands where an earlier conversion lost a character


def read_lines(path: str | Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 text file, without their ends.

    Only line feeds end a line: texts hold carriage returns and U+2028, which
    ``str.splitlines`` takes for ends too, and the lines of parallel files would no
    longer belong together.

    Raises:
        UserError: there is no such file, or a line is not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; the corpus is not unpacked whole")
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}:{number}: not UTF-8 (byte "
                    f"0x{error.object[error.start]:02x}); unpack the corpus anew, or "
                    "convert the file with iconv"
                ) from None


def count_lines(path: str | Path) -> int:
    """Count the lines of a file as :func:`read_lines` yields them, UTF-8 or not."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; the corpus is not unpacked whole")
    with open(path, "rb") as stream:
        return sum(1 for _ in stream)


def clean_text(text: str) -> str:
    """Take out marks that nobody sees, and make all white space single spaces."""
    if not text.isascii() or not text.isprintable():
        text = text.translate(_CLEAN)
    return " ".join(text.split())


def is_damaged(text: str) -> bool:
    """Whether a character of the text was lost in an earlier conversion."""
    return _DAMAGED in text
