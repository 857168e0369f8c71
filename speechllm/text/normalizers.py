"""Text normalisers of the scores: the project's own, and Whisper's.

Published error rates next to Whisper's use Whisper's normalisers (Radford et al. 2022,
appendix C), which transformers contains: ``EnglishTextNormalizer`` for English and
``BasicTextNormalizer`` for other languages. They write numbers as digits, write out
contractions, remove fillers and brackets with their content, and map British to
American spelling. The table of spellings is not part of transformers; see
:mod:`speechllm.pretrained.whisper_spelling`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from importlib import metadata
from typing import TYPE_CHECKING, Protocol

from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES, VERSION, normalize

if TYPE_CHECKING:
    from transformers.models.whisper.english_normalizer import (
        BasicTextNormalizer,
        EnglishTextNormalizer,
    )


class Normalizer(Protocol):
    """Normaliser of references and hypotheses."""

    def __call__(self, text: str, language: str) -> str:
        """Return the normalised text, without spaces at its ends."""

    def signature(self, language: str) -> str:
        """Return name and versions, which tell whether two scores can be compared."""


class SpokenNormalizer:
    """The project's normaliser: texts as they are spoken, numbers in words."""

    def __call__(self, text: str, language: str) -> str:
        """Return the normalised text."""
        return normalize(text, language)

    def signature(self, language: str) -> str:
        """Return name and versions."""
        return f"speechllm|version:{VERSION}|num2words:{metadata.version('num2words')}"


class WhisperNormalizer:
    """Whisper's normalisers, as transformers has them.

    Spaces are removed in languages written without them. So the character error rate
    is the one of Whisper's paper, which puts a space between characters.

    Args:
        load_spelling: returns the spellings that are replaced, British to American;
            called at the first English text.
    """

    def __init__(self, load_spelling: Callable[[], Mapping[str, str]]):
        self.load_spelling = load_spelling

    @cached_property
    def english(self) -> EnglishTextNormalizer:
        """Normaliser of English texts."""
        from transformers.models.whisper import english_normalizer

        return english_normalizer.EnglishTextNormalizer(dict(self.load_spelling()))

    @cached_property
    def basic(self) -> BasicTextNormalizer:
        """Normaliser of other texts."""
        from transformers.models.whisper import english_normalizer

        return english_normalizer.BasicTextNormalizer()

    def __call__(self, text: str, language: str) -> str:
        """Return the normalised text."""
        normalized = self.english(text) if language == "en" else self.basic(text)
        gap = "" if language in LANGUAGES_WITHOUT_SPACES else " "
        return gap.join(normalized.split())

    def signature(self, language: str) -> str:
        """Return the name of the class and transformers' version."""
        name = "EnglishTextNormalizer" if language == "en" else "BasicTextNormalizer"
        spaces = "|spaces:no" if language in LANGUAGES_WITHOUT_SPACES else ""
        return f"whisper|{name}{spaces}|transformers:{metadata.version('transformers')}"


SPOKEN = SpokenNormalizer()
