"""Detection of the spoken language by the decoder that Whisper was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from speechllm.models.config import REVISIONS, read_config
from speechllm.models.speech_decoder import SpeechDecoder
from speechllm.pretrained.model_folder import read_json
from speechllm.pretrained.resolve import resolve_model
from speechllm.utils.errors import UserError


def find_whisper(folder: Path) -> Path:
    """Return the folder of the Whisper whose encoder a model has.

    Args:
        folder: of the model.

    Raises:
        UserError: the encoder is another one, or that of an English-only Whisper.
    """
    advice = "give --language with the code of the language"
    if not (folder / "config.yaml").exists():
        raise UserError(f"--language auto: needs a Whisper encoder; {advice}")
    config = read_config(folder / "config.yaml")
    name = config["encoder_conf"]["model"]
    if config.get("encoder", "hubert") != "whisper":
        raise UserError(
            f"--language auto: needs a Whisper encoder, and that of {folder} is "
            f"{name}; {advice}"
        )
    whisper = resolve_model(name, revision=(config.get(REVISIONS) or {}).get(name))
    if not language_codes(whisper):
        raise UserError(
            f"--language auto: {name} was trained on one language only; {advice}"
        )
    return whisper


def language_codes(whisper: Path) -> list[str]:
    """Return the codes of a Whisper's languages; none for an English-only one."""
    try:
        content = read_json(whisper / "generation_config.json")
    except FileNotFoundError:
        content = {}
    found = content.get("lang_to_id") or {}
    return [token.strip("<|>") for token in found]


class LanguageDetector:
    """Whisper with its decoder, which predicts the language token of speech."""

    def __init__(
        self, whisper: Path, languages: Sequence[str], device: str | torch.device
    ):
        """Load the weights.

        Args:
            whisper: folder of :func:`find_whisper`.
            languages: to choose from.
            device: ``cpu``, ``cuda``, …

        Raises:
            UserError: Whisper knows none of the languages, or its files are damaged.
        """
        known = language_codes(whisper)
        self.languages = [code for code in languages if code in known]
        if not self.languages:
            raise UserError(
                f"--language auto: {whisper} knows none of {', '.join(languages)}; "
                "give --language"
            )
        self.decoder = SpeechDecoder(whisper).to(device)

    def __call__(self, samples: np.ndarray) -> tuple[str, float]:
        """Return the most probable language and its probability.

        Args:
            samples: speech (samples,) at 16 kHz; the first 30 s are used.

        Returns:
            One of the languages to choose from, and its probability among all of
            Whisper's, which is low for speech in a language that is not one of them.
        """
        states = self.decoder.encode([samples])
        (probabilities,) = self.decoder.language_probabilities(states)
        best = max(self.languages, key=probabilities.__getitem__)
        return best, probabilities[best]
