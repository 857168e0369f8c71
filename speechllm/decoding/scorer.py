"""Interface of the scorers of beam search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from speechllm.decoding.hypothesis import BeamState, Candidate


class Scorer(Protocol):
    """A term of the score, with one row of state for each hypothesis.

    It corresponds to ESPnet's ``BatchScorerInterface``: rows are added for new
    utterances, scored for their next tokens, and selected by the surviving
    candidates. The first scorer proposes candidates, each further one prunes them and
    adds its term.
    """

    def prefill(self, utterances: Sequence[int]) -> list[int]:
        """Add a row for the empty hypothesis of each utterance.

        Returns:
            The utterances in the order of their new rows.
        """

    def score(self, choices: list[list[Candidate]], beams: Sequence[BeamState]) -> None:
        """Score the candidates for the next token.

        Args:
            choices: candidates of each utterance, changed in place; best first.
            beams: the utterances.
        """

    def select(self, survivors: Sequence[Candidate], utterances: Sequence[int]) -> None:
        """Reorder the rows so that row i continues survivor i.

        Args:
            survivors: in the order of their new rows.
            utterances: those that are not finished.
        """
