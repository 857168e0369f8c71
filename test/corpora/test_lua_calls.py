"""Lua calls: values by the reference manual of Lua 5.1, and generated programs."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechllm.corpora._lua_calls import read_calls
from speechllm.utils.errors import UserError


def calls(folder, program: str | bytes) -> list[tuple]:
    path = folder / "dialogs_cs.lua"
    path.write_bytes(program.encode() if isinstance(program, str) else program)
    return [(call.name, *call.arguments) for call in read_calls(path, ("f", "g"))]


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ('f("Co je to?")', [("f", "Co je to?")]),
        ("f('a', \"b\" , [[c]])", [("f", "a", "b", "c")]),
        ('f "a" g [==[b]]c]==]', [("f", "a"), ("g", "b]]c")]),
        ("f()", [("f", None)]),
        (
            r'f("\"Ano\" \\ \'x\' \/ \n\t\r\a\b\f\v")',
            [("f", "\"Ano\" \\ 'x' / \n\t\r\a\b\f\v")],
        ),
        (r'f("\65\10\0669\197\153")', [("f", "A\nB9ř")]),
        ('f("a\\\nb\\\r\nc")', [("f", "a\nb\nc")]),
        ("f([[\na\r\nb\n]])", [("f", "a\nb\n")]),
        ('f("a" .. "b"..[[c]]\n.. \'d\', "e")', [("f", "abcd", "e")]),
        ('f("key"..i, "", "x" .. 1)', [("f", None, "", None)]),
        (
            'f(g("a"), {"b", "c"}, t["d"], "e")',
            [("f", None, None, None, "e"), ("g", "a")],
        ),
        ('-- f("a")\nf("b") -- g("c")', [("f", "b")]),
        ('--[[ f("a")\n]] f("b") --[=[ ]] f("c") ]=] f("d")', [("f", "b"), ("f", "d")]),
        ('f("-- no comment", "[[", "..")', [("f", "-- no comment", "[[", "..")]),
        ('for i = 0, 2 do f("k"..i) end', [("f", None)]),
        ('local function f(text) end x.f("a") x:f("b") ff("c") f = g', []),
        ('f("a', None),
        ('f("a\nb")', None),
        ("f([==[a]])", None),
        ("--[[ f()", None),
        ("f('\\", None),
    ],
)
def test_calls_of_lua_programs(tmp_path, program, found):
    if found is None:
        with pytest.raises(UserError, match=r"dialogs_cs.lua:1: a string or comment"):
            calls(tmp_path, program)
    else:
        assert calls(tmp_path, program) == found


def test_lines_byte_order_mark_and_other_encodings(tmp_path):
    path = tmp_path / "dialogs_cs.lua"
    path.write_bytes(b'\xef\xbb\xbf-- a\r\nf("a\\\nb")\n\n--[[\n]]\ng("c")')
    assert [call.line for call in read_calls(path, ("f", "g"))] == [2, 7]
    with pytest.raises(UserError, match=r"dialogs_cs.lua:2: the string is not UTF-8"):
        calls(tmp_path, b'f("a")\nf("lo\xef")')
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"dialogs_cs.lua: not a file; unpack it again"):
        read_calls(path, ("f", "g"))


def quote(text: str, style: int) -> str:
    """Write a string as Lua 5.1 reads it, in one of five ways."""
    mark = "'\""[style % 2]
    if style < 2:
        special = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", mark: "\\" + mark}
        return mark + "".join(special.get(c, c) for c in text) + mark
    if style == 2:
        return '"' + "".join(f"\\{byte:03d}" for byte in text.encode()) + '"'
    if style == 3:  # a line end right after the opening bracket is not in the string
        level = "="
        while f"]{level}]" in text + "]":
            level += "="
        plain = text.replace("\r", "\n")
        return f"[{level}[\n{plain}]{level}]" if plain == text else quote(text, 0)
    middle = len(text) // 2
    return f"{quote(text[:middle], 0)} .. --[[ ] ]]\n {quote(text[middle:], 2)}"


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


@given(
    st.lists(
        st.tuples(
            st.sampled_from("fg"),
            st.lists(st.tuples(TEXTS, st.integers(0, 4)), min_size=1, max_size=4),
            st.sampled_from(
                ("\n", " ; ", "\n-- f('x')\n", " --[==[ g('\n') ]==] x = 1 ")
            ),
        )
    )
)
def test_strings_written_for_lua_are_read_unchanged(tmp_path_factory, program):
    text = ""
    for name, arguments, after in program:
        quoted = ", ".join(quote(value, style) for value, style in arguments)
        text += f"{name}({quoted}){after}"
    expected = [(name, *(value for value, _ in values)) for name, values, _ in program]
    assert calls(tmp_path_factory.getbasetemp(), text) == expected


@given(st.binary(max_size=40))
def test_any_file_is_read_or_refused(tmp_path_factory, content):
    try:
        calls(tmp_path_factory.getbasetemp(), content)
    except UserError as error:
        assert "dialogs_cs.lua:" in str(error)
