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
    if not language_ids(whisper):
        raise UserError(
            f"--language auto: {name} was trained on one language only; {advice}"
        )
    return whisper


def language_ids(whisper: Path) -> dict[str, int]:
    """Return the token of each language of a Whisper; empty for an English-only one."""
    try:
        content = read_json(whisper / "generation_config.json")
    except FileNotFoundError:
        content = {}
    found = content.get("lang_to_id") or {}
    return {token.strip("<|>"): number for token, number in found.items()}


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
        self.ids = language_ids(whisper)
        self.languages = [code for code in languages if code in self.ids]
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
        logits = self.decoder.first_logits(self.decoder.encode([samples]))[0]
        codes = list(self.ids)
        chosen = logits[[self.ids[code] for code in codes]].float()
        probabilities = dict(zip(codes, chosen.softmax(0).tolist()))
        best = max(self.languages, key=lambda code: probabilities[code])
        return best, probabilities[best]
