"""Text normalisation: the one place that says what counts as the same text.

``ctc_text`` is what the CTC branch is trained on and what ``normalize`` adds to for
scoring. Both take a two-letter language code.

Japanese is scored by characters, and so that the same speech is the same text:
NFKC (full-width letters and digits, half-width kana, circled numbers become the plain
ones), lower case, no punctuation, brackets or middle dots, no spaces, and numerals in
kanji as they are read (``２,０００年`` and ``2000年`` are ``二千年``, ``3.5`` is
``三点五``, ``090`` is ``零九零``). What needs a dictionary stays as it is written:
kana against kanji, ``二〇〇〇年``, ``%`` (gone, as all symbols).
"""

from __future__ import annotations

import re
import unicodedata

LANGUAGES_WITHOUT_SPACES = frozenset({"ja", "zh", "yue"})
METRICS = ("wer", "cer")
_APOSTROPHES = "'\u2018\u2019\u02bc\u2032\uff07`\u00b4"
_LONE_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")
_LONGEST_NUMBER = 15  # digits; longer ones are codes that are read digit by digit

# Grouped thousands and decimals: English and Japanese write 1,000.5, the others 1.000,5.
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


def ctc_text(text: str, lang: str) -> str:
    """Reduce a text to what is heard: letters, marks, digits and inner apostrophes.

    Lower case, NFKC; punctuation, symbols, hyphens and dashes become spaces, and
    runs of white space one space. An apostrophe between letters stays, as a plain
    ``'``. Languages written without spaces lose them. The result may be empty.
    """
    text = unicodedata.normalize("NFKC", text.translate(_TO_PLAIN_APOSTROPHE))
    text = unicodedata.normalize("NFKC", text.lower()).translate(_HEARD)
    words = _LONE_APOSTROPHE.sub(" ", text).split()
    gap = "" if lang in LANGUAGES_WITHOUT_SPACES else " "
    # a mark may now stand behind a letter that a space or a sign kept it from
    return unicodedata.normalize("NFC", gap.join(words))


def normalize(text: str, lang: str, metric: str = "wer") -> str:
    """Normalise a reference or hypothesis for scoring: ``ctc_text``, numbers spelt.

    Args:
        text: raw text.
        lang: two-letter code of the text's language.
        metric: ``wer`` or ``cer``; both are taken from the same text, so that the
            two rates speak of the same errors.
    """
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}, not one of {METRICS}")
    return ctc_text(spell_numbers(text, lang), lang)


def spell_numbers(text: str, lang: str) -> str:
    """Write the numbers of a text in words: ``press 2`` → ``press two``.

    Numbers with a leading zero or more than 15 digits are spelt digit by digit.
    English and French ordinals (``1st``, ``2e``) become ordinal words. Japanese
    numbers become kanji (the text is put into NFKC first). Languages that num2words does not
    know and the others that are written without spaces stay as they are.
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

    def words(number, **options) -> str:
        return num2words.num2words(number, lang=lang, **options)

    def cardinal(match: re.Match) -> str:
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


def _spell(number: str, lang: str, words) -> str:
    whole, mark, fraction = _split_number(number, lang)
    if len(whole) > _LONGEST_NUMBER or (whole.startswith("0") and len(whole) > 1):
        spelt = " ".join(words(int(digit)) for digit in whole)
    elif mark and len(fraction) <= _LONGEST_NUMBER:
        from decimal import Decimal

        return words(Decimal(f"{whole}.{fraction}"))
    else:
        spelt = words(int(whole))
    if mark:
        spelt += " " + " ".join(words(int(digit)) for digit in fraction)
    return spelt


def _split_number(number: str, lang: str) -> tuple[str, str, str]:
    """Split ``1,234.5`` (or ``1.234,5``) into ``1234``, the mark and ``5``."""
    group = "," if lang in _POINT_LANGUAGES else "[.\u00a0\u202f]"
    grouped = re.match(rf"[0-9]{{1,3}}(?:{group}[0-9]{{3}})+(?![0-9])", number)
    whole = grouped[0] if grouped else re.match("[0-9]+", number)[0]
    rest = number[len(whole) :]
    return re.sub("[^0-9]", "", whole), rest[:1], rest[1:]


class _Heard(dict):
    """``str.translate`` table: letters, marks and digits stay, others do not."""

    def __missing__(self, code: int) -> int | str:
        category = unicodedata.category(chr(code))
        if category[0] in "LMN" or code == ord("'"):
            self[code] = code
        else:
            self[code] = "" if category == "Cf" else " "
        return self[code]


_HEARD = _Heard()
_TO_PLAIN_APOSTROPHE = str.maketrans(dict.fromkeys(_APOSTROPHES, "'"))
