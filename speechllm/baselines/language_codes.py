"""Language codes of NLLB and SeamlessM4T for our codes, such as ``de`` or ``yue``.

NLLB uses the codes of FLORES-200 (listed in transformers' ``tokenization_nllb.py``).
SeamlessM4T uses their first half, except ``cmn`` for Mandarin
(facebookresearch/seamless_communication, docs/m4t/README.md); a checkpoint's generation
config lists the ones it supports. Whisper's codes are ours.
"""

from __future__ import annotations

from speechllm.utils.errors import UserError

#: ISO 639-1 (639-3 for languages without one) → FLORES-200.
FLORES_200 = {
    "af": "afr_Latn",
    "ar": "arb_Arab",
    "bg": "bul_Cyrl",
    "bn": "ben_Beng",
    "ca": "cat_Latn",
    "cs": "ces_Latn",
    "cy": "cym_Latn",
    "da": "dan_Latn",
    "de": "deu_Latn",
    "el": "ell_Grek",
    "en": "eng_Latn",
    "es": "spa_Latn",
    "et": "est_Latn",
    "eu": "eus_Latn",
    "fa": "pes_Arab",
    "fi": "fin_Latn",
    "fr": "fra_Latn",
    "ga": "gle_Latn",
    "gl": "glg_Latn",
    "he": "heb_Hebr",
    "hi": "hin_Deva",
    "hr": "hrv_Latn",
    "hu": "hun_Latn",
    "id": "ind_Latn",
    "is": "isl_Latn",
    "it": "ita_Latn",
    "ja": "jpn_Jpan",
    "ka": "kat_Geor",
    "ko": "kor_Hang",
    "lt": "lit_Latn",
    "lv": "lvs_Latn",
    "mk": "mkd_Cyrl",
    "mn": "khk_Cyrl",
    "mt": "mlt_Latn",
    "nl": "nld_Latn",
    "no": "nob_Latn",
    "pl": "pol_Latn",
    "pt": "por_Latn",
    "ro": "ron_Latn",
    "ru": "rus_Cyrl",
    "sk": "slk_Latn",
    "sl": "slv_Latn",
    "sr": "srp_Cyrl",
    "sv": "swe_Latn",
    "sw": "swh_Latn",
    "ta": "tam_Taml",
    "te": "tel_Telu",
    "th": "tha_Thai",
    "tr": "tur_Latn",
    "uk": "ukr_Cyrl",
    "ur": "urd_Arab",
    "vi": "vie_Latn",
    "yue": "yue_Hant",
    "zh": "zho_Hans",
}


def flores_code(language: str) -> str:
    """Return NLLB's code of a language: ``de`` → ``deu_Latn``.

    Raises:
        UserError: the language is not in the table.
    """
    if language not in FLORES_200:
        raise UserError(
            f"language {language!r} has no code for NLLB and SeamlessM4T; use one of "
            f"{', '.join(FLORES_200)}, or add it to "
            "speechllm/baselines/language_codes.py"
        )
    return FLORES_200[language]


def seamless_code(language: str) -> str:
    """Return SeamlessM4T's code of a language: ``de`` → ``deu``, ``zh`` → ``cmn``."""
    return "cmn" if language == "zh" else flores_code(language).split("_")[0]
