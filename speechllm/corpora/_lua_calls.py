"""Calls with constant strings in Lua 5.1 files, read without running them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from speechllm.utils.errors import UserError

_TOKEN = re.compile(
    rb"""
      (?P<space>\s+)
    | (?P<comment>--\[(?P<c>=*)\[.*?\](?P=c)\]|--(?!\[=*\[)[^\r\n]*)
    | (?P<long>\[(?P<l>=*)\[.*?\](?P=l)\])
    | (?P<short>"(?:[^"\\\r\n]|\\(?:\r\n|.))*"|'(?:[^'\\\r\n]|\\(?:\r\n|.))*')
    | (?P<unfinished>--\[=*\[|\[=*\[|["'])
    | (?P<name>[A-Za-z_][A-Za-z_0-9]*)
    | (?P<other>\.\.\.|\.\.|[0-9]+|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(rb"\\([0-9]{1,3}|\r\n|\n\r|.)", re.DOTALL)
_LETTERS = dict(zip(b"abfnrtv", b"\a\b\f\n\r\t\v", strict=True))
_NEWLINE = re.compile(rb"\r\n|\n\r|\r|\n")


class Call(NamedTuple):
    """A call; an argument is None if it is not a constant string."""

    name: str
    arguments: tuple[str | None, ...]
    line: int


class _Token(NamedTuple):
    text: bytes
    string: str | None  # value of a string token
    line: int


def read_calls(path: str | Path, names: Collection[str]) -> list[Call]:
    """Read the calls of some global functions in a Lua file, in order.

    Strings in quotes and long brackets, their escapes, their concatenation with ``..``
    and both kinds of comments are understood; all other code is skipped.

    Raises:
        UserError: it is not a file, a string or comment does not end, or a string is
            not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: not a file; unpack it again")
    tokens = list(_tokens(path, path.read_bytes()))
    calls = []
    for place, token in enumerate(tokens):
        name = token.text.decode("latin-1")
        before = tokens[place - 1].text if place else b""
        if token.string is not None or name not in names:
            continue
        if before in (b".", b":", b"function"):  # a method or a definition
            continue
        arguments = _arguments(tokens[place + 1 :])
        if arguments is not None:
            calls.append(Call(name, arguments, token.line))
    return calls


def _tokens(path: Path, content: bytes) -> Iterator[_Token]:
    line = 1
    for match in _TOKEN.finditer(content.removeprefix(b"\xef\xbb\xbf")):
        kind, text = match.lastgroup, match[0]
        if kind == "unfinished":
            raise UserError(
                f"{path}:{line}: a string or comment begins that does not end; the "
                "file is damaged, unpack it again"
            )
        if kind in ("short", "long"):
            value = _unquote(text) if kind == "short" else _strip_brackets(text)
            try:
                yield _Token(text, value.decode("utf-8"), line)
            except UnicodeDecodeError:
                raise UserError(
                    f"{path}:{line}: the string is not UTF-8; convert the file, for "
                    "instance with iconv"
                ) from None
        elif kind in ("name", "other"):
            yield _Token(text, None, line)
        line += len(_NEWLINE.findall(text))


def _unquote(token: bytes) -> bytes:
    """Return the value of a string in quotes; other escapes stand for themselves."""

    def value(match: re.Match[bytes]) -> bytes:
        escaped = match[1]
        if escaped.isdigit():
            return bytes([int(escaped) % 256])
        if escaped[0] in b"\r\n":
            return b"\n"
        return bytes([_LETTERS.get(escaped[0], escaped[0])])

    return _ESCAPE.sub(value, token[1:-1])


def _strip_brackets(token: bytes) -> bytes:
    """Return the value of a string in long brackets, without its first line end."""
    width = token.index(b"[", 1) + 1
    return _NEWLINE.sub(b"\n", token[width:-width]).removeprefix(b"\n")


def _arguments(tokens: list[_Token]) -> tuple[str | None, ...] | None:
    """Return the arguments of a call from the tokens after its name.

    None if it is not a call. ``f "text"`` is one, too.
    """
    if tokens and tokens[0].string is not None:
        return (tokens[0].string,)
    if not tokens or tokens[0].text != b"(":
        return None
    depth, arguments, current = 0, [], []
    for token in tokens:
        opening = token.string is None and token.text in (b"(", b"{", b"[")
        closing = token.string is None and token.text in (b")", b"}", b"]")
        depth += opening - closing
        if depth == 0 or (depth == 1 and token.text == b","):
            arguments.append(_concatenate(current))
            current = []
            if depth == 0:
                return tuple(arguments)
        elif not (opening and depth == 1):
            current.append(token)
    return None


def _concatenate(tokens: list[_Token]) -> str | None:
    """Return the value of ``string .. string .. …``, or None for anything else."""
    values, between = tokens[::2], tokens[1::2]
    if len(tokens) % 2 == 0 or any(
        token.string is not None or token.text != b".." for token in between
    ):
        return None
    if any(token.string is None for token in values):
        return None
    return "".join(token.string or "" for token in values)
