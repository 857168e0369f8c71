"""Names of files and utterances: for file systems, tables and terminals."""

from __future__ import annotations

import hashlib
import os
import re

LONGEST_FILE_NAME = 255  # bytes, of common file systems
_SURROGATES = re.compile("[\ud800-\udfff]")
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def safe_file_name(stem: str, suffix: str = "") -> str:
    """Return a file name for ``stem`` and ``suffix`` that a file system accepts.

    ``/`` becomes ``%2F`` and NUL ``%00``. The end of a stem that is too long is
    replaced by a digest of the stem, so that different stems have different names.
    """
    stem = stem.replace("/", "%2F").replace("\0", "%00")
    room = LONGEST_FILE_NAME - len(os.fsencode(suffix))
    encoded = os.fsencode(stem)
    if len(encoded) <= room:
        return stem + suffix
    digest = "-" + hashlib.sha256(encoded).hexdigest()[:16]
    kept = encoded[: room - len(digest)].decode("utf-8", "ignore")
    return kept + digest + suffix


def utf8_name(name: str) -> str:
    r"""Return a name that can be written as UTF-8; other bytes become ``\x83``."""

    def escape(match: re.Match[str]) -> str:
        code = ord(match[0])
        byte = code - 0xDC00  # PEP 383
        return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else f"\\u{code:04x}"

    return _SURROGATES.sub(escape, name)


def one_line(name: str) -> str:
    r"""Return a name as UTF-8 in one line; a tab becomes ``\t``, NUL ``\x00``."""
    return _CONTROLS.sub(
        lambda match: match[0].encode("unicode_escape").decode("ascii"), utf8_name(name)
    )
