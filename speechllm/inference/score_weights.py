"""Weights of LLM, CTC and first pass in pooled n-best lists: ``score_weights.json``.

Stage 11 fits them to a development set; they belong to the model folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from speechllm.decoding.rescoring import pooled_score
from speechllm.utils.errors import UserError
from speechllm.utils.io import write_json

WEIGHTS_FILE = "score_weights.json"
STEPS = 10  # of the grid from 0 to 1


@dataclass(frozen=True)
class ScoreWeights:
    """Weights of the decoder of the first pass and of CTC; the LLM has the rest.

    The defaults were chosen on the test prompts of two trainings of the mini recipe;
    its NOTES.md has their errors on the prompts of other trainings.

    Attributes:
        decoder, ctc: for transcripts.
        translation: of the decoder for translations into English by ``asr_st``; 0: it
            does not translate.
    """

    decoder: float = 0.8
    ctc: float = 0.1
    made_from: str = ""
    translation: float = 0.0


@dataclass(frozen=True)
class ScoredText:
    """A text of a pooled list: log probabilities by the three models, and errors."""

    llm: float
    ctc: float
    decoder: float
    errors: int

    def score(self, weights: ScoreWeights) -> float:
        """Return the score in the pooled list."""
        return pooled_score(
            self.llm, self.ctc, self.decoder, weights.ctc, weights.decoder
        )


@dataclass(frozen=True)
class ScoredTranslation:
    """A translation of a pooled list.

    Attributes:
        llm, decoder: log probabilities.
        text: the translation.
        from_decoder: it is one of the decoder's own.
    """

    llm: float
    decoder: float
    text: str
    from_decoder: bool


def fit_score_weights(
    pools: Sequence[Sequence[ScoredText]], made_from: str = ""
) -> ScoreWeights:
    """Return weights whose best texts have few errors, near the usual ones.

    All multiples of a tenth are tried. A number of errors, if they are rare, varies by
    its square root from set to set, so weights with at most that many more than the
    least are as good. Of them those are chosen that are nearest to the defaults of
    :class:`ScoreWeights`; they differ only where the set clearly asks for it.

    Args:
        pools: texts of each utterance.

    Raises:
        UserError: there is no utterance with texts.
    """
    pools = [pool for pool in pools if pool]
    if not pools:
        raise UserError(
            "no transcripts (asr, asr_st) in the examples to fit score weights to"
        )
    grid = [
        ScoreWeights(decoder / STEPS, ctc / STEPS, made_from)
        for decoder in range(STEPS + 1)
        for ctc in range(STEPS + 1 - decoder)
    ]
    errors = [
        sum(max(pool, key=lambda text: text.score(weights)).errors for pool in pools)
        for weights in grid
    ]
    most = min(errors) + math.sqrt(min(errors))
    usual = ScoreWeights()

    def order(index: int) -> tuple[float, int]:
        """Order by the distance from the usual weights, then by errors."""
        weights = grid[index]
        distance = math.hypot(weights.decoder - usual.decoder, weights.ctc - usual.ctc)
        return round(distance, 6), errors[index]

    return grid[min((i for i, n in enumerate(errors) if n <= most), key=order)]


def fit_translation_weight(
    pools: Sequence[tuple[str, Sequence[ScoredTranslation]]],
) -> float:
    """Return the weight of the decoder whose best translations have the highest chrF.

    All multiples of a tenth are tried; of equal ones it is the smallest. With 0 the
    decoder does not translate.

    Args:
        pools: reference and translations of each utterance.
    """
    from sacrebleu.metrics import CHRF

    metric, references = CHRF(), [[reference for reference, _ in pools]]

    def quality(weight: float) -> float:
        best = []
        for _, pool in pools:
            known = pool if weight else [t for t in pool if not t.from_decoder] or pool
            found = max(
                known, key=lambda t: pooled_score(t.llm, 0.0, t.decoder, 0.0, weight)
            )
            best.append(found.text)
        return metric.corpus_score(best, references).score

    return max((step / STEPS for step in range(STEPS + 1)), key=quality)


def read_score_weights(folder: str | Path) -> ScoreWeights | None:
    """Read the weights in a model folder; None if it has none.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(folder) / WEIGHTS_FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
        made_from = str(content.get("made_from", ""))
        decoder, ctc = float(content["decoder"]), float(content["ctc"])
        translation = float(content.get("translation", 0.0))
        if not (decoder >= 0 and ctc >= 0 and decoder + ctc <= 1 + 1e-9):
            raise ValueError(f"weights {decoder} and {ctc}")
        if not 0 <= translation <= 1:
            raise ValueError(f"weight {translation} of translations")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: damaged ({error}); make it again with python -m "
            "speechllm.bin.tune"
        ) from None
    return ScoreWeights(decoder, ctc, made_from, translation)


def write_score_weights(weights: ScoreWeights, folder: str | Path) -> None:
    """Write ``score_weights.json`` into a model folder."""
    write_json(Path(folder) / WEIGHTS_FILE, asdict(weights))
