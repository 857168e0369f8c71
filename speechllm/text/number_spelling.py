"""Numbers of a text in words, so that ``press 2`` and ``press two`` score the same.

num2words spells the numbers; the tables below hold what it lacks: separators, marks,
percent, ordinals and fractions.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal

_LONGEST_NUMBER = 15  # digits; longer ones are codes, read digit by digit
_LONGEST_NUMBERS = {"am": 4}  # num2words does not end on longer ones
_NUM2WORDS_CODES = {"kk": "kz", "nb": "no", "nn": "no"}  # ISO 639 -> num2words

# Grouped thousands and decimals: 1,000.5 in these languages, 1.000,5 elsewhere.
_POINT_LANGUAGES = frozenset(
    {"am", "bn", "cy", "en", "he", "ja", "kn", "ko", "te", "th"}
)
_SPACES = "\u00a0\u2009\u202f"  # between groups, in any language
_NUMBER_WITH_POINT = re.compile(
    rf"(?<![0-9])(?:[0-9]{{1,3}}(?:[,{_SPACES}][0-9]{{3}})+(?![0-9])|[0-9]+)"
    r"(?:\.[0-9]+)?"
)
_NUMBER_WITH_COMMA = re.compile(
    rf"(?<![0-9])(?:[0-9]{{1,3}}(?:[.{_SPACES}][0-9]{{3}})+(?![0-9])|[0-9]+)"
    r"(?:[.,][0-9]+)?"
)
#: 10 000 with plain spaces; not a telephone number, nor a part of one.
_SPACED_GROUPS = re.compile(
    r"(?<!\w)(?<![0-9][ .,:/-])[1-9][0-9]{0,2}(?: [0-9]{3})+(?![0-9]|[ .:/-][0-9])"
)
_ZERO_LEFT_OUT = re.compile(r"(?<![\w.,])\.([0-9]+)")  # .5
_ARABIC_MARKS = "\u066b\u066c"  # decimal, thousands
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
    "es": re.compile(r"\b([0-9]{1,15})\.?([ºª]|er)\b", re.IGNORECASE),
    "fr": re.compile(
        r"\b([0-9]{1,15})(ers?|[eè]?res?|nde?s?|es?|[eè]mes?)\b", re.IGNORECASE
    ),
    "it": re.compile(r"\b([0-9]{1,15})\.?([ºª])\b"),
    "pt": re.compile(r"\b([0-9]{1,15})\.?([ºª])\b"),
}
#: One word, or those after 1, after 2 to 4, after other numbers and after fractions.
_PERCENT: dict[str, str | tuple[str, str, str, str]] = {
    "bn": "শতাংশ",
    "ca": "per cent",
    "da": "procent",
    "de": "Prozent",
    "en": "percent",
    "es": "por ciento",
    "fa": "درصد",
    "fi": ("prosentti", "prosenttia", "prosenttia", "prosenttia"),
    "fr": "pour cent",
    "hu": "százalék",
    "id": "persen",
    "it": "per cento",
    "ja": "パーセント",
    "ko": "퍼센트",
    "nl": "procent",
    "no": "prosent",
    "pl": "procent",
    "pt": "por cento",
    "ro": "la sută",
    "ru": ("процент", "процента", "процентов", "процента"),
    "sv": "procent",
    "te": "శాతం",
    "th": "เปอร์เซ็นต์",
    "tr": "yüzde",  # before the number
    "uk": ("відсоток", "відсотки", "відсотків", "відсотка"),
    "vi": "phần trăm",
}
_PERCENT_SIGNS = str.maketrans("％﹪٪", "%%%")
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
_ABBREVIATED_NUMERO = re.compile(r"\bn\.?[º°]\s?(?=[0-9])", re.IGNORECASE)
#: Halves, thirds and quarters (singular, plural), the numerator 1, and the words
#: between a whole number and a fraction, and before a half.
_FRACTIONS = {
    "en": ({2: ("half", "halves"), 4: ("quarter", "quarters")}, "one", "and", "and a"),
    "es": (
        {2: ("medio", "medios"), 3: ("tercio", "tercios"), 4: ("cuarto", "cuartos")},
        "un", "y", "y",
    ),
    "fr": (
        {2: ("demi", "demis"), 3: ("tiers", "tiers"), 4: ("quart", "quarts")},
        "un", "et", "et",
    ),
    "it": ({2: ("mezzo", "mezzi")}, "un", "e", "e"),
    "pt": ({2: ("meio", "meios"), 3: ("terço", "terços")}, "um", "e", "e"),
}  # fmt: skip
_GERMAN_PARTS = (
    "halb", "Drittel", "Viertel", "Fünftel", "Sechstel", "Siebtel", "Achtel",
    "Neuntel", "Zehntel",
)  # fmt: skip
_FRACTION = re.compile(
    r"(?:(?<![0-9.,])([0-9]+) )?(?<![0-9])([0-9]{1,2})⁄(10|[2-9])(?![0-9])"
)
_DECADE = re.compile(r"\b((?:1[1-9]|20)[0-9]0)s\b|(?<!\w)['’]?\b([2-9]0)s\b")
_BRITISH_AND = re.compile(
    r"\b(hundred|thousand|million|billion|trillion),? and "
    r"(?=(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|first|"
    r"second|third|fifth|ninth|twelfth|(?:four|six|seven|eigh|ten|eleven)th|"
    r"[a-z]+teen(?:th)?|(?:twen|thir|for|fif|six|seven|eigh|nine)t(?:y|ieth))\b)",
    re.IGNORECASE,
)
_PER_CENT = re.compile(r"\bper cent\b", re.IGNORECASE)

Words = Callable[..., str]


def spell_numbers(text: str, lang: str) -> str:
    """Spell the numbers of a text in words: ``press 2`` → ``press two``.

    Digits of any script are numbers. Numbers with a leading zero or more than 15
    digits, and those that num2words cannot spell, are spelt digit by digit. Groups of
    three digits may be separated by the language's mark or by spaces; plain spaces
    where the decimal mark is a comma (``10 000``). Ordinals (``1st``, ``2e``, ``1º``)
    become ordinal words in English, French, Spanish, Italian and Portuguese, and
    fractions (``½``) words in these and in German and Japanese. English years are read
    in pairs of digits, and English numbers have no "and", also where they are written
    in words. ``%`` at a number and ``№`` become words in the languages of ``_PERCENT``
    and ``_NUMERO``. Japanese numbers become kanji, after NFKC. Numbers in languages
    that num2words does not support, such as Chinese, stay digits.
    """
    text = _plain_digits(text).translate(_PERCENT_SIGNS)
    if lang == "ja":
        text = unicodedata.normalize("NFKC", text).replace("ゼロ", "零")
    if lang in _NUMERO:
        text = text.replace("№", f" {_NUMERO[lang]} ")
        if lang in ("es", "fr", "it", "pt"):
            text = _ABBREVIATED_NUMERO.sub(f"{_NUMERO[lang]} ", text)
    if re.search("[0-9]", text):
        text = _spell_digits(text, lang)
    if lang == "en":
        text = _PER_CENT.sub("percent", _BRITISH_AND.sub(r"\1 ", text))
    return text


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

    code = _NUM2WORDS_CODES.get(lang, lang)
    if code not in num2words.CONVERTER_CLASSES:
        return text
    longest = _LONGEST_NUMBERS.get(code, _LONGEST_NUMBER)

    def words(digits: str, to: str = "cardinal", fraction: str = "") -> str:
        """Spell a number; digit by digit if num2words fails, as it does on some."""
        number = Decimal(f"{digits}.{fraction}") if fraction else int(digits)
        spelt = ""
        if len(digits) <= longest:
            with suppress(Exception):  # errors of any kind: missing powers, overflow
                spelt = str(num2words.num2words(number, lang=code, to=to)).strip()
        if spelt or len(digits) == 1:
            spelt = spelt or digits
            return spelt.replace(" and ", " ") if lang == "en" else spelt
        return " ".join(words(digit) for digit in digits)

    def mark_word(mark: str) -> str:
        known = _DECIMAL_MARKS.get(code + mark) or _DECIMAL_MARKS.get(code)
        return known or str(num2words.CONVERTER_CLASSES[code].pointword or "").strip()

    def spell(number: str) -> str:
        """Spell digits with the separators of the language."""
        if lang == "en" and re.fullmatch("1[1-9][0-9]{2}|20[1-9][0-9]", number):
            return words(number, "year")
        whole, mark, fraction = _split_number(number, code)
        leading_zero = whole.startswith("0") and len(whole) > 1
        short = len(fraction) <= 3 and not leading_zero
        if mark and code in _WHOLE_FRACTIONS and short:
            return words(whole, fraction=fraction)
        spelt = " ".join(map(words, whole)) if leading_zero else words(whole)
        if mark:
            spelt = " ".join([spelt, mark_word(mark), *map(words, fraction)])
        return spelt

    def cardinal(match: re.Match[str]) -> str:
        spelt = spell(match[0])
        return spelt.replace(" ", "") if lang == "ja" else _padded(spelt, match)

    def zero_left_out(match: re.Match[str]) -> str:
        return _padded(" ".join([mark_word("."), *map(words, match[1])]), match)

    def decade(match: re.Match[str]) -> str:
        year = words(match[1], "year") if match[1] else words(match[2])
        return year[:-1] + "ies" if year.endswith("y") else year + "s"

    point = code in _POINT_LANGUAGES
    text = text.translate(str.maketrans(_ARABIC_MARKS, ".," if point else ",."))
    pattern = _NUMBER_WITH_POINT if point else _NUMBER_WITH_COMMA
    if point:
        text = _ZERO_LEFT_OUT.sub(zero_left_out, text)
    else:
        text = _SPACED_GROUPS.sub(lambda match: match[0].replace(" ", ""), text)
    text = _spell_fractions(text, lang, words)
    text = _spell_percent(text, code, pattern)
    if lang in _ORDINALS:
        text = _ORDINALS[lang].sub(lambda found: _ordinal(found, lang, words), text)
    if lang == "en":
        text = _DECADE.sub(decade, text)
    return pattern.sub(cardinal, text)


def _is_word(character: str) -> bool:
    """Return True if a character is, or folds to, a letter or digit (``㎏``)."""
    return unicodedata.normalize("NFKC", character)[:1].isalnum()


def _split_number(number: str, lang: str) -> tuple[str, str, str]:
    """Split ``1,234.5`` (or ``1.234,5``) into ``1234``, the mark and ``5``."""
    group = f"[{',' if lang in _POINT_LANGUAGES else '.'}{_SPACES}]"
    match = re.match(rf"[0-9]{{1,3}}(?:{group}[0-9]{{3}})+(?![0-9])|[0-9]+", number)
    assert match is not None  # a number begins with a digit
    whole, rest = match[0], number[match.end() :]
    return re.sub("[^0-9]", "", whole), rest[:1], rest[1:]


def _spell_percent(text: str, lang: str, number: re.Pattern[str]) -> str:
    """Replace ``%`` at a number by its word; the number stays."""
    forms = _PERCENT.get(lang)
    if forms is None:
        return text
    if lang == "tr":
        text = re.sub(rf"({number.pattern})\s?%(?![0-9])", rf"{forms} \1", text)
        return re.sub(r"%\s?(?=[0-9])", f"{forms} ", text)

    def suffix(match: re.Match[str]) -> str:
        form = forms
        if isinstance(form, tuple):
            form = form[_plural(match[1], lang)]
        return f"{match[1]}{'' if lang == 'ja' else ' '}{form}"

    return re.sub(rf"({number.pattern})\s?%", suffix, text)


def _plural(number: str, lang: str) -> int:
    """Return the form of a noun: 0 after 1, 1 after 2 to 4, 2 after others, 3: 1.5."""
    whole, mark, _ = _split_number(number, lang)
    if mark:
        return 3
    last = whole
    if lang in ("ru", "uk"):  # as after the last digit, but 11 to 14 are others
        last = whole[-1] if whole[-2:-1] != "1" else "0"
    return 0 if last == "1" else 1 if last in ("2", "3", "4") else 2


def _ordinal(match: re.Match[str], lang: str, words: Words) -> str:
    """Spell an ordinal with the gender of its ending."""
    number, ending = match[1], match[2].lower()
    if lang == "fr":
        feminine = re.match("[eè]?re|nde", ending)
        second = ending.startswith("nd")
        special = {"1": "première", "2": "seconde"} if feminine else {"2": "second"}
        if (feminine or second) and number in special:
            return special[number]
    spelt = words(number, "ordinal")
    if ending == "ª":
        return re.sub(r"o\b", "a", spelt)
    return spelt.removesuffix("o") if lang == "es" and ending == "er" else spelt


def _spell_fractions(text: str, lang: str, words: Words) -> str:
    """Spell fractions with U+2044, which NFKC makes of ``½``: one half."""

    def spell(match: re.Match[str]) -> str:
        whole, above, below = match[1], match[2], int(match[3])
        if lang == "ja":
            spelt = f"{words(match[3])}分の{words(above)}"
            return f"{words(whole)}と{spelt}" if whole else spelt
        if lang == "de":
            half = above == "1" and below == 2
            spelt = f"{_one('ein', above, words)} {_GERMAN_PARTS[below - 2]}"
            if whole:  # zweieinhalb
                joined = spelt.replace(" ", "") if half else f" {spelt}"
                spelt = words(whole) + joined
            return _padded(spelt, match)
        parts, one, joint, before_half = _FRACTIONS[lang]
        singular = words(match[3], "ordinal")
        plural = singular[:-1] + "i" if lang == "it" else singular + "s"
        part = parts.get(below, (singular, plural))[above != "1"]
        if whole and above == "1" and below == 2:
            return _padded(f"{words(whole)} {before_half} {part}", match)
        spelt = f"{_one(one, above, words)} {part}"
        return _padded(f"{words(whole)} {joint} {spelt}" if whole else spelt, match)

    if "⁄" not in text or lang not in (*_FRACTIONS, "de", "ja"):
        return text
    return _FRACTION.sub(spell, text)


def _one(one: str, number: str, words: Words) -> str:
    """Spell a numerator, whose 1 has a form of its own."""
    return one if number == "1" else words(number)


def _padded(spelt: str, match: re.Match[str]) -> str:
    """Return spelt words with a space where a letter or digit touches the match."""
    before = match.string[match.start() - 1 : match.start()]
    after = match.string[match.end() : match.end() + 1]
    return " " * _is_word(before) + spelt + " " * _is_word(after)
