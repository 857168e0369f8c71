"""Text normalisation for the CTC branch and for scoring.

The CTC branch is trained on ``ctc_text``; scoring uses ``normalize``, which also
spells numbers. Both take a two-letter language code.

Japanese is scored by characters, after a normalisation that maps the same speech to
the same text: NFKC (full-width letters and digits, half-width kana and circled numbers
become plain ones), lower case, no punctuation, brackets, middle dots or spaces, and
numerals in kanji as they are read (``２,０００年`` and ``2000年`` are ``二千年``,
``3.5`` is ``三点五``, ``090`` is ``零九零``). Nothing that needs a dictionary is
changed (kana against kanji, ``二〇〇〇年``); symbols such as ``%`` are removed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal

LANGUAGES_WITHOUT_SPACES = frozenset({"ja", "zh", "yue"})
METRICS = ("wer", "cer")
_APOSTROPHES = "'\u2018\u2019\u02bc\u2032\uff07`\u00b4"
_TO_PLAIN_APOSTROPHE = str.maketrans(dict.fromkeys(_APOSTROPHES, "'"))
_LONE_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")
_LONGEST_NUMBER = 15  # digits; longer ones are codes, read digit by digit

# Grouped thousands and decimals: 1,000.5 in English and Japanese, 1.000,5 elsewhere.
_POINT_LANGUAGES = frozenset({"en", "ja"})
_NUMBER_WITH_POINT = re.compile(
    r"(?<![0-9])(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
)
_NUMBER_WITH_COMMA = re.compile(
    r"(?<![0-9])(?:[0-9]{1,3}(?:[.\u00a0\u202f][0-9]{3})+(?![0-9])|[0-9]+)"
    r"(?:[.,][0-9]+)?"
)
_ORDINALS = {
    "en": re.compile(r"\b([0-9]{1,15})(?:st|nd|rd|th)\b", re.IGNORECASE),
    "fr": re.compile(r"\b([0-9]{1,15})(?:ers?|res?|es?|[eè]mes?)\b", re.IGNORECASE),
}


class _KeepLetters(dict[int, int | str]):
    """``str.translate`` table that keeps letters, marks, digits and apostrophes."""

    def __missing__(self, code: int) -> int | str:
        category = unicodedata.category(chr(code))
        if category[0] in "LMN" or code == ord("'"):
            self[code] = code
        else:
            self[code] = "" if category == "Cf" else " "
        return self[code]


_KEEP_LETTERS = _KeepLetters()


def ctc_text(text: str, lang: str) -> str:
    """Reduce a text to letters, marks, digits and apostrophes within words.

    Lower case, NFKC; punctuation, symbols, hyphens and dashes become spaces, and runs
    of white space one space. An apostrophe between letters becomes a plain ``'``.
    Spaces are removed in languages written without them. The result may be empty.

    Args:
        text: raw text.
        lang: two-letter code of the text's language.
    """
    text = unicodedata.normalize("NFKC", text.translate(_TO_PLAIN_APOSTROPHE))
    text = unicodedata.normalize("NFKC", text.lower()).translate(_KEEP_LETTERS)
    words = _LONE_APOSTROPHE.sub(" ", text).split()
    gap = "" if lang in LANGUAGES_WITHOUT_SPACES else " "
    # a removed character may have separated a combining mark from its letter
    return unicodedata.normalize("NFC", gap.join(words))


def normalize(text: str, lang: str, metric: str = "wer") -> str:
    """Normalise a reference or hypothesis for scoring: ``ctc_text`` of spelt numbers.

    Args:
        text: raw text.
        lang: two-letter code of the text's language.
        metric: ``wer`` or ``cer``; both score the same text, so that the two rates
            count the same errors.

    Raises:
        ValueError: another metric.
    """
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}, not one of {METRICS}")
    return ctc_text(spell_numbers(text, lang), lang)


def spell_numbers(text: str, lang: str) -> str:
    """Spell the numbers of a text in words: ``press 2`` → ``press two``.

    Numbers with a leading zero or more than 15 digits are spelt digit by digit.
    English and French ordinals (``1st``, ``2e``) become ordinal words. Japanese
    numbers become kanji, after NFKC. Text in other languages without spaces, or in
    languages that num2words does not support, is returned unchanged.
    """
    if lang == "ja":
        text = unicodedata.normalize("NFKC", text)
    elif lang in LANGUAGES_WITHOUT_SPACES:
        return text
    if not re.search("[0-9]", text):
        return text
    import num2words

    if lang not in num2words.CONVERTER_CLASSES:
        return text

    def words(number: int | Decimal, to: str = "cardinal") -> str:
        return str(num2words.num2words(number, lang=lang, to=to))

    def cardinal(match: re.Match[str]) -> str:
        spelt = _spell(match[0], lang, words)
        if lang == "ja":
            return spelt.replace(" ", "")
        before = text_now[match.start() - 1 : match.start()]
        after = text_now[match.end() : match.end() + 1]
        left = " " if before.isalnum() else ""
        return left + spelt + (" " if after.isalnum() else "")

    text_now = text
    if lang in _ORDINALS:
        text_now = _ORDINALS[lang].sub(
            lambda match: words(int(match[1]), to="ordinal"), text
        )
    pattern = _NUMBER_WITH_POINT if lang in _POINT_LANGUAGES else _NUMBER_WITH_COMMA
    return pattern.sub(cardinal, text_now)


def _spell(number: str, lang: str, words: Callable[[int | Decimal], str]) -> str:
    """Spell one number, written with digits and the separators of the language."""
    whole, mark, fraction = _split_number(number, lang)
    if len(whole) > _LONGEST_NUMBER or (whole.startswith("0") and len(whole) > 1):
        spelt = " ".join(words(int(digit)) for digit in whole)
    elif mark and len(fraction) <= _LONGEST_NUMBER:
        return words(Decimal(f"{whole}.{fraction}"))
    else:
        spelt = words(int(whole))
    if mark:
        spelt += " " + " ".join(words(int(digit)) for digit in fraction)
    return spelt


def _split_number(number: str, lang: str) -> tuple[str, str, str]:
    """Split ``1,234.5`` (or ``1.234,5``) into ``1234``, the mark and ``5``."""
    group = "," if lang in _POINT_LANGUAGES else "[.\u00a0\u202f]"
    match = re.match(rf"[0-9]{{1,3}}(?:{group}[0-9]{{3}})+(?![0-9])|[0-9]+", number)
    assert match is not None  # a number begins with a digit
    whole, rest = match[0], number[match.end() :]
    return re.sub("[^0-9]", "", whole), rest[:1], rest[1:]
