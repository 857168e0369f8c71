"""Text normalisation per language."""

from __future__ import annotations

import pytest
from hypothesis import example, given
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
            "one thousand, two hundred and thirty-four point five men",
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
