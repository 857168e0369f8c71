"""Text normalisation per language."""

from __future__ import annotations

import re

import num2words
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from speechllm.text.normalization import ctc_text, normalize, spell_numbers


@pytest.mark.parametrize(
    ("lang", "raw", "expected"),
    [
        ("en", "Don’t  STOP, 'now'! rock 'n' roll", "don't stop now rock n roll"),
        ("en", "non-stop – twenty—one/two", "non stop twenty one two"),
        ("fr", "L'Hôtel : « déjà-vu » … ÇA", "l'hôtel déjà vu ça"),
        ("es", "¿Qué? ¡21 años!", "qué 21 años"),
        ("ru", "Нажмите «решётку» — Всё.", "нажмите решётку всё"),
        ("ja", "東京 タワー、１２時！", "東京タワー12時"),
        ("hi", "हिन्दी में।", "हिन्दी में"),
        ("en", "ﬁne ＡＢＣ soft\u00adware", "fine abc software"),
        ("en", "… ?!", ""),
        ("en", "", ""),
        ("tr", "İstanbul, ISPARTA; IŞIK", "istanbul ısparta ışık"),
        ("en", "İ I", "i̇ i"),
    ],
)
def test_ctc_text(lang, raw, expected):
    assert ctc_text(raw, lang) == expected


@pytest.mark.parametrize(
    ("lang", "raw", "expected"),
    [
        ("en", "press 2, then 28", "press two, then twenty-eight"),
        (
            "en",
            "1,234.5 men",
            "one thousand, two hundred thirty-four point five men",
        ),
        ("en", "3D, the 1st and 22nd", "three D, the first and twenty-second"),
        ("en", "room 007", "room zero zero seven"),
        ("fr", "appuyez sur 1. La 2ème fois", "appuyez sur un. La deuxième fois"),
        ("fr", "1.500,25", "mille cinq cents virgule deux cinq"),
        ("es", "marque 21", "marque veintiuno"),
        ("it", "28Kilobit", "ventotto Kilobit"),
        ("ru", "нажмите 5", "нажмите пять"),
        ("ja", "12時", "十二時"),
        ("ja", "２，０００年と3.5倍、１９９９", "二千年と三点五倍、千九百九十九"),
        ("ja", "090の1234567890123456", "零九零の一二三四五六七八九零一二三四五六"),
        ("ja", "えー，はい．", "えー,はい."),
        ("ja", "①ＣＤ", "一CD"),
        ("ja", "ｾﾞﾛから0まで", "零から零まで"),
        (
            "en",
            "in 1990, 1905 and 2019",
            "in nineteen ninety, nineteen oh-five and twenty nineteen",
        ),
        (
            "en",
            "264, the 1990s, 1,990",
            "two hundred sixty-four, the nineteen "
            "nineties, one thousand, nine hundred ninety",
        ),
        ("en", "two hundred and sixty-four", "two hundred sixty-four"),
        ("en", "a hundred and ten dogs and two", "a hundred ten dogs and two"),
        ("en", "a thousand and more", "a thousand and more"),
        ("en", "50% of №5", "fifty percent of  number five"),
        ("en", "press ２ now, CO₂, 10², ½", "press two now, CO two, ten two, one⁄two"),
        ("en", "2½", "two one⁄two"),
        (
            "fr",
            "la 1ère, le 1er, la 2nde, le 3e, la 1re",
            "la première, le premier, la seconde, le troisième, la première",
        ),
        ("fr", "10\u00a0000 et 10\u202f000,5", "dix mille et dix mille virgule cinq"),
        (
            "it",
            "713345611,87",
            "settecentotredici milioni e "
            "trecentoquarantacinquemilaseicentoundici virgola otto sette",
        ),
        ("it", "3,14", "tre virgola uno quattro"),
        ("es", "3,05", "tres coma cero cinco"),
        ("tr", "3,05", "üç virgül sıfır beş"),
        ("ru", "0,0000000001", "ноль целых" + " ноль" * 9 + " один"),
        ("ru", "3,14", "три целых четырнадцать сотых"),
        ("hu", "3,1416", "három egész egy négy egy hat"),
        ("fa", "۳٫۰۵", "سه ممیز صفر پنج"),
        ("fa", "3,123456789012", "سه ممیز یک دو سه چهار پنج شش هفت هشت نه صفر یک دو"),
        ("te", "12", "పన్నెండు"),
        ("hi", "२", "2"),
        ("zh", "12点", "12点"),
        ("xx", "12", "12"),
        ("en", "9" * 20, " ".join(["nine"] * 20)),
        ("en", "no digits", "no digits"),
    ],
)
def test_spell_numbers(lang, raw, expected):
    assert spell_numbers(raw, lang) == expected


def test_normalize_is_ctc_text_of_spelt_numbers():
    assert normalize("Press 21!", "en", "wer") == "press twenty one"
    assert normalize("Press 21!", "en", "cer") == "press twenty one"
    assert normalize("「Ｗｅｂ」は、２０００年・ｶﾀｶﾅ 3.5％。", "ja", "cer") == (
        "webは二千年カタカナ三点五"
    )
    with pytest.raises(ValueError, match="bleu"):
        normalize("a", "en", "bleu")


@example("E\u00af", "ja")  # a spacing macron: NFKC gives a space and a mark
@example("e\u00ad\u0301", "fr")  # a soft hyphen before an accent
@given(st.text(), st.sampled_from(["en", "fr", "es", "it", "ru", "ja"]))
def test_normalisation_is_idempotent_and_clean(text, lang):
    once = ctc_text(text, lang)
    assert ctc_text(once, lang) == once
    assert once == once.strip()
    assert "  " not in once
    assert "\n" not in once


@given(st.text(alphabet="0123456789.,ae ", max_size=30), st.sampled_from(["en", "fr"]))
def test_normalized_text_has_no_digits(text, lang):
    assert not any(character in "0123456789" for character in normalize(text, lang))


LANGUAGES = sorted(
    name for name in num2words.CONVERTER_CLASSES if name.isalpha() and name.islower()
)
SHAPES = ("0", "7", "21", "100", "264", "007", "1990", "1000001", "713345611", "1" * 12)
FRACTIONS = ("", "5", "05", "14", "140", "87", "1416", "0000000001", "123456789012")


@pytest.mark.parametrize("lang", LANGUAGES)
def test_numbers_of_every_shape_are_spelt_differently(lang):
    """No number raises, is empty, keeps a digit, or is read as another number."""
    mark = "." if spell_numbers("1,5", lang).count(",") else ","
    spelt = {}
    for whole in SHAPES:
        for fraction in FRACTIONS:
            number = f"{whole}{mark}{fraction}" if fraction else whole
            text = normalize(number, lang)
            assert text and not re.search("[0-9]", text), (number, text)
            assert text not in spelt, (number, spelt.get(text))
            spelt[text] = number


@settings(deadline=None, max_examples=300)
@given(
    st.text(alphabet="0123456789.,\u00a0\u202f%№½²①٣２-a ", max_size=24),
    st.sampled_from(LANGUAGES),
)
def test_spelling_never_raises_and_leaves_no_digit(text, lang):
    assert not re.search("[0-9]", normalize(text, lang))
