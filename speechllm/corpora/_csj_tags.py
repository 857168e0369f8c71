"""The tags of CSJ's transcripts, and the text that is left when they are read.

The tags are those of NINJAL's manual of the transcripts (Koiso et al.,
``transcription.pdf`` in the corpus); ``disfluent`` text is what was said, ``fluent``
text what was meant.

=============  ======================================  =========  ========
tag            what it marks                           disfluent  fluent
=============  ======================================  =========  ========
(F えー)       filler, interjection                    kept       left out
(D だ)         fragment of a word, repaired            kept       left out
(D2 的)        particle or affix, repaired             kept       left out
(X 実際は)     misreading that is read again           kept       left out
(? 字数)       not sure; ``(?)`` not understood        kept       kept
(? 次数,実数)  not sure, with other guesses            first      first
(M は)         words that are spoken about             kept       kept
(O ザッツ)     foreign, ancient, dialect               kept       kept
(R ××)         name or abuse; the audio is noise       no utterance is made of it
(A シー;Ｃ)    letters and symbols                     written    written
(A 二千;２千)  numbers                                 in kanji   in kanji
(K たち;橘)    not in kanji since it was broken off    in kanji   in kanji
(W ギーツ;…)   slip of the tongue; what was meant      meant      meant
(B カズ;スー)  misreading; what it should be           said       meant
(笑 …)         said laughing; 泣 crying, 咳 coughing,  kept       kept
               あくび yawning, L whispering
=============  ======================================  =========  ========

``<笑>``, ``<雑音>``, ``<FV>``, ``<H>``, ``<Q>``, … stand for sounds and go. As in
Kaldi's recipe, ``んー`` is ``ん`` and a middle dot at the end of a word goes. Where the
alternative that counts is empty, the first is taken. Tags are ASCII but for their
spaces and semicolons; one in full width, ``（Ｆ　えー）``, is refused as unknown.

A tag may begin in one segment and end in a later one, so a talk is read as one
stream of characters that know their segment.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from speechllm.utils.errors import UserError

MASK = "×"  # stands for what was made unhearable
_OPEN = re.compile(r"\((D2|[FDXMORAKWBL?]|笑|泣|咳|あくび)(?![A-Za-z0-9])[ _\u3000]*")
_SOUND = re.compile(
    r"<(?:FV|VN|H|Q|笑|泣|咳|息|あくび|フロア発話|フロア笑|拍手|デモ|ベル|朗読間違い"
    r"|雑音|P[LR]?:?[0-9:. -]*)>"
)
_ALTERNATIVES = {**dict.fromkeys("AKWB", ";；"), "?": ",，、"}
_LEFT_OUT = frozenset({"F", "D", "D2", "X"})  # of fluent text
# What a number begins with: such (A …) keep their reading, which is in kanji.
_NUMBERS = ("ゼロ", *"０零〇一二三四五六七八九十百千万億兆．")
_LONG_N = re.compile("([んン])ー+")


class Word(NamedTuple):
    """A word as it is transcribed.

    Attributes:
        text: with its tags.
        segment: number of its segment, counted from 0 in its channel.
        place: file and line, for messages.
    """

    text: str
    segment: int
    place: str


@dataclass
class Tag:
    """A tag that was opened: its alternatives are lists of characters and tags."""

    name: str
    segment: int
    place: str
    alternatives: list[list] = field(default_factory=lambda: [[]])
    last_segment: int = 0


class Text(NamedTuple):
    """What one segment says."""

    disfluent: str
    fluent: str


def read_words(
    words: Iterable[Word], segments: int
) -> tuple[list[Text], list[tuple[int, int]]]:
    """Read the tags of one channel of a talk.

    Args:
        words: in their order.
        segments: how many segments there are.

    Returns:
        The text of each segment, and the (first, last) segments over which one tag
        with alternatives stretches, so that they can only be taken together.

    Raises:
        UserError: a tag is unknown or its brackets do not match; names file and line.
    """
    root, spans = parse(words)
    texts = []
    for fluent in (False, True):
        parts: list[list[str]] = [[] for _ in range(segments)]
        for segment, character in _render(root.alternatives[0], fluent):
            parts[segment].append(character)
        texts.append([_LONG_N.sub(r"\1", "".join(part)) for part in parts])
    return [Text(*pair) for pair in zip(*texts, strict=True)], spans


def parse(words: Iterable[Word]) -> tuple[Tag, list[tuple[int, int]]]:
    """Build the tree of tags, and list the spans of those that choose."""
    open_tags = [Tag("", 0, "")]
    spans = []
    for word in words:
        text, position = word.text.rstrip("・"), 0
        while position < len(text):
            character = text[position]
            tag = open_tags[-1]
            position += 1
            if character == "(":
                match = _OPEN.match(text, position - 1)
                if not match:
                    _refuse(word, text[position - 1 :])
                open_tags.append(Tag(match[1], word.segment, word.place))
                position = match.end()
            elif character == ")":
                if len(open_tags) == 1:
                    raise UserError(
                        f"{word.place}: a bracket is closed that was not opened: "
                        f"{word.text}"
                    )
                tag.last_segment = word.segment
                if len(tag.alternatives) > 1 and tag.segment != word.segment:
                    spans.append((tag.segment, word.segment))
                open_tags.pop()
                open_tags[-1].alternatives[-1].append(tag)
            elif character == "<":
                match = _SOUND.match(text, position - 1)
                if not match:
                    _refuse(word, text[position - 1 :])
                position = match.end()
            elif character in "（＜" and _is_wide_tag(text[position - 1 :]):
                _refuse(word, text[position - 1 :])
            elif character in _ALTERNATIVES.get(tag.name, ""):
                tag.alternatives.append([])
            elif not character.isspace() and (
                character.isalnum() or not character.isascii()
            ):
                heard = MASK if tag.name == "R" else character
                tag.alternatives[-1].append((word.segment, heard))
    if len(open_tags) > 1:
        raise UserError(
            f"{open_tags[-1].place}: the tag ({open_tags[-1].name} is never closed"
        )
    return open_tags[0], spans


def _render(nodes: list, fluent: bool) -> Iterator[tuple[int, str]]:
    for node in nodes:
        if isinstance(node, tuple):
            yield node
        elif not (fluent and node.name in _LEFT_OUT):
            yield from _choose(node, fluent)


def _choose(tag: Tag, fluent: bool) -> list[tuple[int, str]]:
    """Return the characters of the alternative that counts."""
    said, meant = tag.alternatives[0], tag.alternatives[-1]
    if tag.name == "A":
        reading = "".join(character for _, character in _render(said, True))
        by_meaning = not reading.startswith(_NUMBERS)
    else:
        by_meaning = tag.name in ("K", "W") or (tag.name == "B" and fluent)
    empty = not any(True for _ in _render(meant, False))
    return list(_render(meant if by_meaning and not empty else said, fluent))


def _is_wide_tag(text: str) -> bool:
    """Whether a text begins with a tag that someone put into full width."""
    ascii_text = unicodedata.normalize("NFKC", text)
    return bool(_OPEN.match(ascii_text) or _SOUND.match(ascii_text))


def _refuse(word: Word, rest: str) -> None:
    end = min(rest.find(mark) + 1 or len(rest) for mark in ">)＞）")
    raise UserError(
        f"{word.place}: unknown tag {rest[: max(end, 2)]} in {word.text!r}; the tags "
        "that are known are listed in speechllm/corpora/_csj_tags.py"
    )
