"""The tags of CSJ's transcripts and the text that they are converted to.

The tags are those of NINJAL's transcription manual (Koiso et al., ``transcription.pdf``
in the corpus). ``disfluent`` text is the text as spoken, ``fluent`` text the intended
one.

=============  ======================================  =========  ========
tag            meaning                                 disfluent  fluent
=============  ======================================  =========  ========
(F えー)       filler, interjection                    kept       removed
(D だ)         fragment of a word, repaired            kept       removed
(D2 的)        particle or affix, repaired             kept       removed
(X 実際は)     misreading that is read again           kept       removed
(? 字数)       uncertain; ``(?)`` unintelligible       kept       kept
(? 次数,実数)  uncertain, with alternatives            first      first
(M は)         words that are spoken about             kept       kept
(O ザッツ)     foreign, ancient, dialect               kept       kept
(R ××)         name or abuse, masked by noise          utterance is dropped
(A シー;Ｃ)    letters and symbols                     written    written
(A 二千;２千)  numbers                                 in kanji   in kanji
(K たち;橘)    kana since the word was interrupted     in kanji   in kanji
(W ギーツ;…)   slip of the tongue; intended word       intended   intended
(B カズ;スー)  misreading; correct reading             spoken     correct
(笑 …)         said laughing; 泣 crying, 咳 coughing,  kept       kept
               あくび yawning, L whispering
=============  ======================================  =========  ========

``<笑>``, ``<雑音>``, ``<FV>``, ``<H>``, ``<Q>``, … are sounds and are removed.
As in Kaldi's recipe, ``んー`` becomes ``ん`` and a middle dot at the end of a word is
removed. If the selected alternative is empty, the first one is used. Tags are ASCII
except for their spaces and semicolons; one in full width, ``（Ｆ　えー）``, is unknown.

A tag may begin in one segment and end in a later one, so a talk is read as one stream
of characters, each with the number of its segment.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from speechllm.utils.errors import UserError

MASK = "×"  # replaces masked speech
_OPEN = re.compile(r"\((D2|[FDXMORAKWBL?]|笑|泣|咳|あくび)(?![A-Za-z0-9])[ _\u3000]*")
_SOUND = re.compile(
    r"<(?:FV|VN|H|Q|笑|泣|咳|息|あくび|フロア発話|フロア笑|拍手|デモ|ベル|朗読間違い"
    r"|雑音|P[LR]?:?[0-9:. -]*)>"
)
_ALTERNATIVES = {**dict.fromkeys("AKWB", ";；"), "?": ",，、"}
_DISFLUENCIES = frozenset({"F", "D", "D2", "X"})  # removed from fluent text
# First characters of numbers: such (A …) keep their reading, which is in kanji.
_NUMBERS = ("ゼロ", *"０零〇一二三四五六七八九十百千万億兆．")
_LONG_N = re.compile("([んン])ー+")


class Word(NamedTuple):
    """A transcribed word.

    Attributes:
        text: the word with its tags.
        segment: number of its segment, from 0 in each channel.
        place: file and line, for error messages.
    """

    text: str
    segment: int
    place: str


@dataclass
class Tag:
    """A tag; each alternative is a list of characters and tags."""

    name: str
    segment: int
    place: str
    alternatives: list[list] = field(default_factory=lambda: [[]])
    last_segment: int = 0


class Text(NamedTuple):
    """The two texts of a segment."""

    disfluent: str
    fluent: str


def read_words(
    words: Iterable[Word], segments: int
) -> tuple[list[Text], list[tuple[int, int]]]:
    """Convert the transcript of one channel of a talk to text.

    Args:
        words: the words in order.
        segments: number of segments.

    Returns:
        The text of each segment, and the (first, last) segments of each tag with
        alternatives that spans several segments, which must be joined.

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
    """Build the tree of tags and list the segments of those with alternatives."""
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
                    _raise_unknown_tag(word, text[position - 1 :])
                open_tags.append(Tag(match[1], word.segment, word.place))
                position = match.end()
            elif character == ")":
                if len(open_tags) == 1:
                    raise UserError(
                        f"{word.place}: closing bracket without an opening one: "
                        f"{word.text}; correct the transcript"
                    )
                tag.last_segment = word.segment
                if len(tag.alternatives) > 1 and tag.segment != word.segment:
                    spans.append((tag.segment, word.segment))
                open_tags.pop()
                open_tags[-1].alternatives[-1].append(tag)
            elif character == "<":
                match = _SOUND.match(text, position - 1)
                if not match:
                    _raise_unknown_tag(word, text[position - 1 :])
                position = match.end()
            elif character in "（＜" and _is_wide_tag(text[position - 1 :]):
                _raise_unknown_tag(word, text[position - 1 :])
            elif character in _ALTERNATIVES.get(tag.name, ""):
                tag.alternatives.append([])
            elif not character.isspace() and (
                character.isalnum() or not character.isascii()
            ):
                spoken = MASK if tag.name == "R" else character
                tag.alternatives[-1].append((word.segment, spoken))
    if len(open_tags) > 1:
        raise UserError(
            f"{open_tags[-1].place}: the tag ({open_tags[-1].name} is never closed; "
            "correct the transcript"
        )
    return open_tags[0], spans


def _render(nodes: list, fluent: bool) -> Iterator[tuple[int, str]]:
    for node in nodes:
        if isinstance(node, tuple):
            yield node
        elif not (fluent and node.name in _DISFLUENCIES):
            yield from _choose(node, fluent)


def _choose(tag: Tag, fluent: bool) -> list[tuple[int, str]]:
    """Return the characters of the alternative to use."""
    spoken, intended = tag.alternatives[0], tag.alternatives[-1]
    if tag.name == "A":
        reading = "".join(character for _, character in _render(spoken, True))
        use_intended = not reading.startswith(_NUMBERS)
    else:
        use_intended = tag.name in ("K", "W") or (tag.name == "B" and fluent)
    empty = not any(True for _ in _render(intended, False))
    return list(_render(intended if use_intended and not empty else spoken, fluent))


def _is_wide_tag(text: str) -> bool:
    """Return True if a text begins with a tag in full-width characters."""
    ascii_text = unicodedata.normalize("NFKC", text)
    return bool(_OPEN.match(ascii_text) or _SOUND.match(ascii_text))


def _raise_unknown_tag(word: Word, rest: str) -> None:
    end = min(rest.find(mark) + 1 or len(rest) for mark in ">)＞）")
    raise UserError(
        f"{word.place}: unknown tag {rest[: max(end, 2)]} in {word.text!r}; the known "
        "tags are listed in speechllm/corpora/_csj_tags.py"
    )
