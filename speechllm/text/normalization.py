"""Text normalisation for the CTC branch and for scoring.

The CTC branch is trained on ``ctc_text``; scoring uses ``normalize``, which also
spells numbers. Both take a two-letter language code.

Japanese is scored by characters, after a normalisation that maps the same speech to
the same text: NFKC (full-width letters and digits, half-width kana and circled numbers
become plain ones), lower case, no punctuation, brackets, middle dots or spaces, and
numerals in kanji as they are read (``２,０００年`` and ``2000年`` are ``二千年``,
``3.5`` is ``三点五``, ``090`` is ``零九零``), ``ゼロ`` as ``零``. Nothing else that
needs a dictionary is changed (kana against kanji, ``二〇〇〇年``); symbols (``%``)
are removed.
"""

from __future__ import annotations

import re
import unicodedata
from contextlib import suppress
from decimal import Decimal

LANGUAGES_WITHOUT_SPACES = frozenset({"ja", "zh", "yue"})
METRICS = ("wer", "cer")
_APOSTROPHES = "'\u2018\u2019\u02bc\u2032\uff07`\u00b4"
_TO_PLAIN_APOSTROPHE = str.maketrans(dict.fromkeys(_APOSTROPHES, "'"))
_LONE_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")
_LONGEST_NUMBER = 15  # digits; longer ones are codes, read digit by digit
_LONGEST_NUMBERS = {"am": 4}  # num2words does not end on longer ones

# Grouped thousands and decimals: 1,000.5 in these languages, 1.000,5 elsewhere.
_POINT_LANGUAGES = frozenset(
    {"am", "bn", "cy", "en", "he", "ja", "kn", "ko", "te", "th"}
)
_NUMBER_WITH_POINT = re.compile(
    r"(?<![0-9])(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
)
_NUMBER_WITH_COMMA = re.compile(
    r"(?<![0-9])(?:[0-9]{1,3}(?:[.\u00a0\u2009\u202f][0-9]{3})+(?![0-9])|[0-9]+)"
    r"(?:[.,][0-9]+)?"
)
_PERSIAN_MARKS = str.maketrans({"\u066b": ",", "\u066c": "."})
#: Words for the decimal mark where num2words has none, or none for this mark.
_DECIMAL_MARKS = {
    "ar": "فاصلة",
    "bn": "দশমিক",
    "cy": "pwynt",
    "es,": "coma",
    "fa": "ممیز",
    "hu": "egész",
    "id": "koma",
    "it": "virgola",
    "ja": "点",
    "ru": "целых",
    "vi": "phẩy",
}
#: Languages that read a fraction as one number ("three point fourteen"); elsewhere,
#: and from four decimals on, it is read digit by digit.
_WHOLE_FRACTIONS = frozenset(
    {"az", "be", "cs", "hu", "kz", "lt", "lv", "pl", "ru", "sk", "sr", "uk"}
)
_ORDINALS = {
    "en": re.compile(r"\b([0-9]{1,15})(st|nd|rd|th)\b", re.IGNORECASE),
    "fr": re.compile(
        r"\b([0-9]{1,15})(ers?|[eè]?res?|nde?s?|es?|[eè]mes?)\b", re.IGNORECASE
    ),
}
_PERCENT = {
    "de": "Prozent",
    "en": "percent",
    "es": "por ciento",
    "fr": "pour cent",
    "it": "per cento",
    "nl": "procent",
    "pl": "procent",
    "pt": "por cento",
    "ru": "процентов",
    "tr": "yüzde",
}
_NUMERO = {
    "de": "Nummer",
    "en": "number",
    "es": "número",
    "fr": "numéro",
    "it": "numero",
    "nl": "nummer",
    "pl": "numer",
    "pt": "número",
    "ru": "номер",
    "tr": "numara",
    "uk": "номер",
}
_DECADE = re.compile(r"\b((?:1[1-9]|20)[0-9]0)s\b")
_BRITISH_AND = re.compile(
    r"\b(hundred|thousand|million|billion|trillion),? and "
    r"(?=(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|first|"
    r"second|third|fifth|ninth|twelfth|(?:four|six|seven|eigh|ten|eleven)th|"
    r"[a-z]+teen(?:th)?|(?:twen|thir|for|fif|six|seven|eigh|nine)t(?:y|ieth))\b)",
    re.IGNORECASE,
)
_DOTTED_I = str.maketrans({"İ": "i", "I": "ı"})  # Turkish and Azerbaijani


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
    if lang in ("az", "tr"):
        text = text.translate(_DOTTED_I)
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

    Digits of any script are numbers. Numbers with a leading zero or more than 15
    digits, and those that num2words cannot spell, are spelt digit by digit. English
    and French ordinals (``1st``, ``2e``) become ordinal words, English years are read
    in pairs of digits, and English numbers have no "and", also where they are written
    in words. ``%`` after a number and ``№`` become words in ten languages. Japanese
    numbers become kanji, after NFKC. Numbers in other languages without spaces, or in
    languages that num2words does not support, stay digits.
    """
    text = _plain_digits(text)
    if lang == "ja":
        text = unicodedata.normalize("NFKC", text).replace("ゼロ", "零")
    elif lang in LANGUAGES_WITHOUT_SPACES:
        return text
    if lang in _NUMERO:
        text = text.replace("№", f" {_NUMERO[lang]} ")
    if re.search("[0-9]", text):
        text = _spell_digits(text, lang)
    return _BRITISH_AND.sub(r"\1 ", text) if lang == "en" else text


def _plain_digits(text: str) -> str:
    """Replace digits of any script, and characters that contain some, by ASCII digits.

    A raised, lowered or circled digit and a fraction are numbers of their own: next to
    another digit they get a space.
    """
    if text.isascii():
        return text
    plain = ""
    spaced = False  # the last digit needs a space to the next one
    for character in text:
        if character.isdecimal():
            new, own = str(unicodedata.decimal(character)), False
        else:
            new = character
            folded = unicodedata.normalize("NFKC", character)
            own = any(map(str.isdecimal, folded))
            if own:
                new = "".join(_plain_digits(c) if c.isdecimal() else c for c in folded)
        if (own or spaced) and new[0].isdecimal() and plain[-1:].isdecimal():
            plain += " "
        plain += new
        spaced = own
    return plain


def _spell_digits(text: str, lang: str) -> str:
    """Spell the ASCII digits of a text, if num2words supports the language."""
    import num2words

    if lang not in num2words.CONVERTER_CLASSES:
        return text
    longest = _LONGEST_NUMBERS.get(lang, _LONGEST_NUMBER)

    def words(digits: str, to: str = "cardinal", fraction: str = "") -> str:
        """Spell a number; digit by digit if num2words fails, as it does on some."""
        number = Decimal(f"{digits}.{fraction}") if fraction else int(digits)
        spelt = ""
        if len(digits) <= longest:
            with suppress(Exception):  # errors of any kind: missing powers, overflow
                spelt = str(num2words.num2words(number, lang=lang, to=to)).strip()
        if spelt or len(digits) == 1:
            spelt = spelt or digits
            return spelt.replace(" and ", " ") if lang == "en" else spelt
        return " ".join(words(digit) for digit in digits)

    def mark_word(mark: str) -> str:
        known = _DECIMAL_MARKS.get(lang + mark) or _DECIMAL_MARKS.get(lang)
        return known or str(num2words.CONVERTER_CLASSES[lang].pointword or "").strip()

    def spell(number: str) -> str:
        """Spell digits with the separators of the language."""
        if lang == "en" and re.fullmatch("1[1-9][0-9]{2}|20[1-9][0-9]", number):
            return words(number, "year")
        whole, mark, fraction = _split_number(number, lang)
        code = whole.startswith("0") and len(whole) > 1
        if mark and lang in _WHOLE_FRACTIONS and len(fraction) <= 3 and not code:
            return words(whole, fraction=fraction)
        spelt = " ".join(map(words, whole)) if code else words(whole)
        if mark:
            spelt = " ".join([spelt, mark_word(mark), *map(words, fraction)])
        return spelt

    def cardinal(match: re.Match[str]) -> str:
        spelt = spell(match[0])
        if lang == "ja":
            return spelt.replace(" ", "")
        before = text[match.start() - 1 : match.start()]
        after = text[match.end() : match.end() + 1]
        left = " " if before.isalnum() else ""
        return left + spelt + (" " if after.isalnum() else "")

    def ordinal(match: re.Match[str]) -> str:
        feminine = lang == "fr" and re.match("[eè]?re|nde", match[2], re.IGNORECASE)
        second = lang == "fr" and match[2].lower().startswith("nd")
        special = {"1": "première", "2": "seconde"} if feminine else {"2": "second"}
        if (feminine or second) and match[1] in special:
            return special[match[1]]
        return words(match[1], "ordinal")

    def decade(match: re.Match[str]) -> str:
        year = words(match[1], "year")
        return year[:-1] + "ies" if year.endswith("y") else year + "s"

    if lang == "fa":
        text = text.translate(_PERSIAN_MARKS)
    if lang in _PERCENT:
        text = re.sub(r"(?<=[0-9])\s?%", f" {_PERCENT[lang]}", text)
    if lang in _ORDINALS:
        text = _ORDINALS[lang].sub(ordinal, text)
    if lang == "en":
        text = _DECADE.sub(decade, text)
    pattern = _NUMBER_WITH_POINT if lang in _POINT_LANGUAGES else _NUMBER_WITH_COMMA
    return pattern.sub(cardinal, text)


def _split_number(number: str, lang: str) -> tuple[str, str, str]:
    """Split ``1,234.5`` (or ``1.234,5``) into ``1234``, the mark and ``5``."""
    group = "," if lang in _POINT_LANGUAGES else "[.\u00a0\u2009\u202f]"
    match = re.match(rf"[0-9]{{1,3}}(?:{group}[0-9]{{3}})+(?![0-9])|[0-9]+", number)
    assert match is not None  # a number begins with a digit
    whole, rest = match[0], number[match.end() :]
    return re.sub("[^0-9]", "", whole), rest[:1], rest[1:]
