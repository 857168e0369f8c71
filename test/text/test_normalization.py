"""Text normalisation per language."""

from __future__ import annotations

import re

import num2words
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from speechllm.text.normalization import ctc_text, normalize
from speechllm.text.number_spelling import spell_numbers


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
        ("en", "press ２ now, CO₂, 10²", "press two now, CO two, ten two"),
        ("en", "the '90s, .50, x.5", "the nineties, point five zero, x.five"),
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
        ("ar", "٣٫١٤", "ثلاثة فاصلة واحد أربعة"),
        ("nb", "5", "fem"),
        ("hi", "२", "2"),
        ("zh", "12点", "12点"),
        ("xx", "12", "12"),
        ("en", "9" * 20, " ".join(["nine"] * 20)),
        ("en", "no digits", "no digits"),
    ],
)
def test_spell_numbers(lang, raw, expected):
    assert spell_numbers(raw, lang) == expected


@pytest.mark.parametrize(
    ("lang", "written", "spoken"),
    [
        (
            "fr",
            "10\u00a0000, 10\u202f000, 10 000 et 10.000",
            "dix mille " * 2 + "dix mille et dix mille",
        ),
        (
            "fr",
            "1 234 567,5",
            "un million deux cent trente-quatre mille cinq cent soixante-sept "
            "virgule cinq",
        ),
        ("ru", "10 500", "десять тысяч пятьсот"),
        (
            "fr",
            "06 12 345 678",
            "zéro six douze trois cent quarante-cinq six cent soixante-dix-huit",
        ),
        (
            "fr",
            "en 1990 200 fois",
            "en mille neuf cent quatre-vingt-dix deux cents fois",
        ),
        (
            "en",
            "1 800 555 1212",
            "one eight hundred five hundred fifty-five twelve twelve",
        ),
        ("en", "50%, 50 %, 50％, fifty per cent", "fifty percent " * 4),
        ("fr", "50\u202f%", "cinquante pour cent"),
        ("tr", "%50 %3,05 50%", "yüzde elli yüzde üç virgül sıfır beş yüzde elli"),
        (
            "ru",
            "1%, 22%, 5%, 11%, 1,5%",
            "один процент двадцать два процента пять процентов одиннадцать "
            "процентов одна целая пять десятых процента",
        ),
        ("fi", "1 % ja 5 %", "yksi prosentti ja viisi prosenttia"),
        ("ja", "50％", "五十パーセント"),
        (
            "de",
            "½ l, 2½, 3⅜, ¾",
            "ein halb l zweieinhalb drei drei achtel drei viertel",
        ),
        (
            "en",
            "½, 2½, 1¾ and ⅝",
            "one half two and a half one and three quarters and five eighths",
        ),
        ("es", "½, 2½, ⅔", "un medio dos y medio dos tercios"),
        (
            "fr",
            "½, 2½, 1¾ et ⅕",
            "un demi deux et demi un et trois quarts et un cinquième",
        ),
        ("it", "½, 2½, ⅖", "un mezzo due e mezzo due quinti"),
        ("pt", "½, 2½, ⅔", "um meio dois e meio dois terços"),
        ("ja", "¾", "四分の三"),
        ("ru", "½", "один два"),
        (
            "es",
            "el 1º, la 2.ª, el 3er piso, nº 5",
            "el primero la segunda el tercer piso número cinco",
        ),
        ("it", "il 1º, la 3ª", "il primo la terza"),
        ("pt", "o 1º, a 10ª", "o primeiro a décima"),
        ("fr", "n° 5, №5", "numéro cinq numéro cinq"),
        ("en", "5㎏", "five kg"),
    ],
)
def test_a_number_and_its_words_are_normalised_to_the_same_text(lang, written, spoken):
    """A reference may have digits where the hypothesis has words."""
    expected = normalize(spoken, lang)
    assert normalize(written, lang) == expected
    assert expected == ctc_text(spoken, lang)


def test_normalize_is_ctc_text_of_spelt_numbers():
    assert normalize("Press 21!", "en", "wer") == "press twenty one"
    assert normalize("Press 21!", "en", "cer") == "press twenty one"
    assert normalize("「Ｗｅｂ」は、２０００年・ｶﾀｶﾅ 3.5％。", "ja", "cer") == (
        "webは二千年カタカナ三点五パーセント"
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
    st.text(alphabet="0123456789.,\u00a0\u202f%№½²①٣２⅝º٫-a ", max_size=24),
    st.sampled_from(LANGUAGES),
)
def test_spelling_never_raises_and_leaves_no_digit(text, lang):
    assert not re.search("[0-9]", normalize(text, lang))
