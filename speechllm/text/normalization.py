"""Text normalisation for the CTC branch and for scoring.

The CTC branch is trained on ``ctc_text``; scoring uses ``normalize``, which also
spells numbers. Both take a two-letter language code.

Japanese is scored by characters, after a normalisation that maps the same speech to
the same text: NFKC (full-width letters and digits, half-width kana and circled numbers
become plain ones), lower case, no punctuation, brackets, middle dots or spaces, and
numerals in kanji as they are read (``２,０００年`` and ``2000年`` are ``二千年``,
``3.5`` is ``三点五``, ``090`` is ``零九零``), ``ゼロ`` as ``零``, and ``%`` after a
number as ``パーセント``. Nothing else that needs a dictionary is changed (kana against
kanji, ``二〇〇〇年``); other symbols are removed.
"""

from __future__ import annotations

import re
import unicodedata

from speechllm.text.number_spelling import spell_numbers

LANGUAGES_WITHOUT_SPACES = frozenset({"ja", "zh", "yue"})
METRICS = ("wer", "cer")
VERSION = 2  # of normalize; raise it when its texts change (1: release 0.2.0)
_APOSTROPHES = "'\u2018\u2019\u02bc\u2032\uff07`\u00b4"
_TO_PLAIN_APOSTROPHE = str.maketrans(dict.fromkeys(_APOSTROPHES, "'"))
_LONE_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")
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
