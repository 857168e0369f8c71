"""Warnings about a user's own data: defects of texts and audio that harm a model."""

from __future__ import annotations

import math
import statistics
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from speechllm.corpora._texts import is_damaged
from speechllm.text.normalization import ctc_text

LEAST_TRAIN_SECONDS = 1800.0
LEAST_TEST_UTTERANCES = 50
_BOM = "\ufeff"
_FEW = 20  # utterances, fewer of which have no distribution
_FASTEST, _SLOWEST = 2.0, 3.0  # factors from the median rate that are always accepted
_DEVIATIONS = 4.0
_FITTING_SECONDS = 1.0  # shorter utterances are mostly pause
_WORST_ERROR = 0.8  # character error rate of CTC that no fitting text should have
_MAD = 1.4826  # standard deviation of a normal distribution per its MAD
#: Scripts of languages that are not written in Latin letters, as in Unicode's names.
_SCRIPTS = {
    "CYRILLIC": "be bg kk ky mk mn ru tg tt uk",
    "CYRILLIC LATIN": "sr uz",
    "GREEK": "el",
    "ARABIC": "ar ckb fa ps sd ug ur",
    "HEBREW": "he iw yi",
    "DEVANAGARI": "hi mr ne sa",
    "BENGALI": "as bn",
    "GURMUKHI": "pa",
    "GUJARATI": "gu",
    "ORIYA": "or",
    "TAMIL": "ta",
    "TELUGU": "te",
    "KANNADA": "kn",
    "MALAYALAM": "ml",
    "SINHALA": "si",
    "THAI": "th",
    "LAO": "lo",
    "TIBETAN": "bo",
    "MYANMAR": "my",
    "KHMER": "km",
    "GEORGIAN": "ka",
    "ARMENIAN": "hy",
    "ETHIOPIC": "am ti",
    "HANGUL CJK": "ko",
    "CJK BOPOMOFO": "yue zh",
    "HIRAGANA KATAKANA CJK": "ja",
}
_SCRIPTS_OF = {
    language: frozenset(scripts.split())
    for scripts, languages in _SCRIPTS.items()
    for language in languages.split()
}
_NO_SCRIPT = {"MODIFIER", "COMBINING", "FULLWIDTH", "HALFWIDTH", "MATHEMATICAL"}


@dataclass(frozen=True, slots=True)
class Utterance:
    """An utterance of the sets.

    Attributes:
        id: in the data dir.
        set: name of the set.
        speaker: empty if unknown.
        raw: transcript as the input has it.
        text: transcript without invisible characters.
        seconds: length; None if unknown.
        ctc_error: character error rate of the CTC transcript; None without a model.
    """

    id: str
    set: str
    speaker: str
    raw: str
    text: str
    seconds: float | None
    ctc_error: float | None = None


@dataclass
class Finding:
    """A kind of defect.

    Attributes:
        name: of the defect, for the table.
        advice: consequence and remedy.
        entries: (utterance, detail) of each case; empty for the corpus as a whole.
    """

    name: str
    advice: str
    entries: list[tuple[str, str]] = field(default_factory=list)

    def line(self) -> str:
        """Return the warning in one line."""
        count = f"{len(self.entries):,} utterances: " if self.entries else ""
        if len(self.entries) == 1:
            count = "1 utterance: "
        return f"{self.name}: {count}{self.advice}"


def _finding(name: str, advice: str, entries: list[tuple[str, str]]) -> Finding | None:
    """Return a defect of utterances; None without any."""
    return Finding(name, advice, entries) if entries else None


def check_utterances(utterances: Sequence[Utterance], language: str) -> list[Finding]:
    """Return the defects that were found, without the ones that do not occur."""
    findings = [
        *_check_amounts(utterances),
        _check_rates(utterances, language),
        _check_ctc(utterances),
        _check_scripts(utterances, language),
        _finding(
            "byte-order mark",
            "removed; a program wrote it in front of the text",
            [(one.id, "U+FEFF") for one in utterances if one.raw.startswith(_BOM)],
        ),
        _finding(
            "lost characters",
            "U+FFFD, of an earlier conversion; export the texts again as UTF-8",
            [(one.id, one.text) for one in utterances if is_damaged(one.text)],
        ),
        _check_case(utterances),
        _check_common_texts(utterances, language),
    ]
    return [f for f in findings if f is not None]


def letters(text: str, language: str) -> int:
    """Count the letters and digits of a text."""
    return len(ctc_text(text, language).replace(" ", ""))


def foreign_letters(text: str, language: str) -> str:
    """Return the letters of a text that are not of its language's scripts.

    Latin letters in a language with another script (names, abbreviations) count only if
    they are more than half of the text's letters.
    """
    expected = _SCRIPTS_OF.get(language, frozenset({"LATIN"}))
    found: dict[str, str] = defaultdict(str)
    total = 0
    for character in unicodedata.normalize("NFKC", text):
        if not character.isalpha():
            continue
        script = unicodedata.name(character, "UNKNOWN").replace("-", " ").split()[0]
        total += 1
        if script not in expected and script not in _NO_SCRIPT:
            found[script] += character
    if "LATIN" in found and len(found["LATIN"]) * 2 <= total:
        del found["LATIN"]
    return "".join(found.values())


def case_of(text: str) -> str:
    """Return ``upper``, ``lower``, ``mixed``, or an empty text without cased letters.

    A text of fewer than four cased letters, such as an abbreviation, has no case.
    """
    cased = [c for c in text if c.lower() != c.upper()]
    if len(cased) < 4:
        return ""
    upper = sum(c == c.upper() for c in cased)
    return "upper" if upper == len(cased) else "mixed" if upper else "lower"


def _check_amounts(utterances: Sequence[Utterance]) -> Iterable[Finding]:
    seconds = sum(one.seconds or 0.0 for one in utterances if one.set == "train")
    known = all(one.seconds is not None for one in utterances)
    if known and seconds < LEAST_TRAIN_SECONDS:
        yield Finding(
            "too little speech",
            f"{seconds / 60:.1f} minutes for training, expect many errors; below "
            f"{LEAST_TRAIN_SECONDS / 60:.0f} minutes adapt a trained model "
            "(--init_param) or add data",
        )
    for name in ("dev", "test"):
        count = sum(one.set == name for one in utterances)
        if 0 < count < LEAST_TEST_UTTERANCES:
            yield Finding(
                f"small {name} set",
                f"{count} utterances; scores of fewer than {LEAST_TEST_UTTERANCES} "
                "vary by several per cent by chance",
            )
    speakers = {one.speaker for one in utterances}
    if len(speakers) == 1 and "" not in speakers:
        yield Finding("one speaker", "the model is trained and tested on one voice")


def _check_rates(utterances: Sequence[Utterance], language: str) -> Finding | None:
    """Compare letters per second with the distribution of the corpus."""
    rates = {}
    for one in utterances:
        count = letters(one.text, language)
        if count and one.seconds is not None and one.seconds > 0:
            rates[one.id] = math.log(count / max(one.seconds, 0.1)), count, one.seconds
    if len(rates) < _FEW:
        return None
    median = statistics.median(rate for rate, _, _ in rates.values())
    deviation = _MAD * statistics.median(abs(r - median) for r, _, _ in rates.values())
    above = max(math.log(_FASTEST), _DEVIATIONS * deviation)
    below = max(math.log(_SLOWEST), _DEVIATIONS * deviation)
    usual = math.exp(median)
    entries = []
    for key, (rate, count, seconds) in rates.items():
        too_slow = rate < median - below and seconds >= _FITTING_SECONDS
        if rate > median + above or too_slow:
            shown = f"{count} letters in {seconds:.2f} s = {math.exp(rate):.1f}/s"
            entries.append((key, f"{shown}; median {usual:.1f}/s"))
    return _finding(
        "text does not fit the audio by length",
        "listen to them; correct or remove wrong transcripts and cut-off audio",
        entries,
    )


def _check_ctc(utterances: Sequence[Utterance]) -> Finding | None:
    """Compare the errors of the CTC transcript with those of the corpus."""
    errors = {o.id: o.ctc_error for o in utterances if o.ctc_error is not None}
    if not errors:
        return None
    median = statistics.median(errors.values())
    deviation = _MAD * statistics.median(abs(e - median) for e in errors.values())
    limit = _WORST_ERROR
    if len(errors) >= _FEW:
        limit = max(limit, median + _DEVIATIONS * deviation)
    entries = [
        (key, f"CTC character error rate {error:.2f}; median {median:.2f}")
        for key, error in errors.items()
        if error >= limit
    ]
    return _finding(
        "text does not fit the audio by CTC",
        "the model of --align_model recognises something else; listen to them",
        entries,
    )


def _check_scripts(utterances: Sequence[Utterance], language: str) -> Finding | None:
    entries = [
        (one.id, f"{''.join(dict.fromkeys(found))[:20]} in: {one.text}")
        for one in utterances
        if (found := foreign_letters(one.text, language))
    ]
    return _finding(
        "other scripts",
        f"letters that are not of the language '{language}', which get CTC labels of "
        "their own; correct the texts, or give the right --lang",
        entries,
    )


def _check_case(utterances: Sequence[Utterance]) -> Finding | None:
    """Find texts whose case differs from the rest of the corpus."""
    cases: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for one in utterances:
        cases[case_of(one.text)].append((one.id, one.text))
    cases.pop("", None)
    total = sum(map(len, cases.values()))
    if not total:
        return None
    usual = max(cases, key=lambda case: len(cases[case]))
    if usual == "upper" and len(cases["upper"]) == total:
        return Finding(
            "all upper case",
            "harmless with --plain_transcripts true, which trains on lower case "
            "(the recipe's default); otherwise the model writes capitals",
        )
    # A sentence such as "yes, of course" may be lower case in any corpus.
    others = [e for case in ("upper", "lower") if case != usual for e in cases[case]]
    if usual == "lower":
        others = [e for case in ("upper", "mixed") for e in cases[case]]
    if len(others) <= 0.01 * total and not cases["upper"]:
        return None
    return _finding(
        "mixed case",
        f"most texts are written in {usual} case and these are not; harmless with "
        "--plain_transcripts true (the recipe's default)",
        others,
    )


def _check_common_texts(
    utterances: Sequence[Utterance], language: str
) -> Finding | None:
    """Find utterances of dev and test whose text is in train too."""
    trained = {ctc_text(o.text, language) for o in utterances if o.set == "train"}
    entries = [
        (one.id, one.text)
        for one in utterances
        if one.set != "train" and ctc_text(one.text, language) in trained
    ]
    return _finding(
        "texts of dev or test in train",
        "the model has seen them, so scores are better than on new sentences",
        entries,
    )
