"""Options of the search, with their checks."""

from __future__ import annotations

from dataclasses import dataclass

from speechllm.utils.errors import UserError


@dataclass(frozen=True)
class SearchOptions:
    """How to search; the names are ESPnet's.

    Attributes:
        beam_size: hypotheses kept; 1 is greedy.
        nbest: hypotheses returned for each utterance.
        ctc_weight: score = ctc_weight · CTC + (1 − ctc_weight) · LLM, for answers in
            the language that is spoken; 0 leaves CTC out.
        penalty: added to the score for each token.
        candidates: tokens that the LLM proposes for each hypothesis and CTC judges.
        label_bonus: added for each CTC label of a text while hypotheses of different
            lengths are compared in joint search; not part of their scores.
        tokens_per_second, extra_tokens: an answer has at most
            ``int(tokens_per_second · seconds + extra_tokens)`` tokens (Nue-ASR's
            released code has 4 and 20.5).
        min_tokens: fewest tokens before the end of an answer; the greatest number
            goes before it.
        no_repeat_ngram_size: no run of so many tokens stands twice in an answer; 0
            allows all.
        rescore_ctc_weight: rank the n-best of the search anew, by this share of CTC's
            probability of the whole text; 0 leaves the ranks as they are.
        guard: whether answers are checked against the audio; None: where the model's
            folder has thresholds for it (:mod:`speechllm.inference.guard`).
        word_times: whether to say when each word was heard, and how sure it is.
        sampling: draw each token instead of searching; the draws of an utterance do
            not depend on its batch.
        temperature, top_k, top_p: what is drawn from: the LLM's probabilities at this
            temperature, of them the ``top_k`` greatest (0: all), of them the fewest
            that sum up to ``top_p``.
        seed: other draws for another number.
    """

    beam_size: int = 1
    nbest: int = 1
    ctc_weight: float = 0.0
    penalty: float = 0.0
    candidates: int = 20
    label_bonus: float = 1.0
    tokens_per_second: float = 4.0
    extra_tokens: float = 20.5
    min_tokens: int = 0
    no_repeat_ngram_size: int = 0
    rescore_ctc_weight: float = 0.0
    guard: bool | None = None
    word_times: bool = False
    sampling: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def max_tokens(self, seconds: float, task: str = "asr") -> int:
        """Most tokens of an answer to so many seconds of speech.

        Twice as many where transcript and translation are asked for.
        """
        most = int(self.tokens_per_second * seconds + self.extra_tokens)
        return 2 * most if task == "asr_st" else most


def search_options(generation: dict) -> SearchOptions:
    """Make search options of keyword arguments or a config's content."""
    known = SearchOptions.__dataclass_fields__
    for name in generation:
        if name not in known:
            raise UserError(f"unknown option {name!r}; known are {', '.join(known)}")
    options = SearchOptions(**generation)
    if options.beam_size < 1 or options.nbest < 1:
        raise UserError("beam_size and nbest are at least 1")
    if options.sampling and (
        options.beam_size > 1 or options.nbest > 1 or options.ctc_weight > 0
    ):
        raise UserError("sampling draws one answer: beam_size 1, nbest 1, ctc_weight 0")
    if options.temperature <= 0 or options.top_k < 0 or not 0 < options.top_p <= 1:
        raise UserError("temperature is above 0, top_k at least 0, top_p in (0, 1]")
    for name in ("ctc_weight", "rescore_ctc_weight"):
        weight = getattr(options, name)
        if not 0 <= weight <= 1:
            raise UserError(f"{name} {weight}: from 0 to 1")
    if options.no_repeat_ngram_size < 0:
        raise UserError("no_repeat_ngram_size is at least 0")
    for name, known in (("guard", (None, True, False)), ("word_times", (True, False))):
        if getattr(options, name) not in known:
            raise UserError(f"{name} {getattr(options, name)!r}: true or false")
    return options
