"""Options of the search, with their checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from speechllm.utils.errors import UserError
from speechllm.utils.schema import (
    Schema,
    boolean,
    check_options,
    choice,
    integer,
    list_of,
    number,
    optional,
    text,
)

#: Old names of options, still accepted.
ALIASES = {"candidates": "pre_beam_size"}


@dataclass(frozen=True)
class SearchOptions:
    """Options of the search, named as in ESPnet.

    Attributes:
        beam_size: hypotheses kept; 1 is greedy.
        nbest: hypotheses returned for each utterance.
        ctc_weight: score = ctc_weight · CTC + (1 − ctc_weight) · LLM, for transcripts;
            0 leaves CTC out.
        penalty: added to the score for each token.
        pre_beam_size: tokens that the LLM proposes for each hypothesis in joint
            search, to be scored by CTC (``candidates`` is the old name).
        label_bonus: added for each CTC label while hypotheses of different lengths
            are compared in joint search; not part of their scores.
        tokens_per_second, extra_tokens: maximum length of an output:
            ``int(tokens_per_second · seconds + extra_tokens)`` tokens (4 and 20.5 in
            Nue-ASR's released code). Stage 10 exports limits for the model's texts.
        retry_truncated: decode an output that reaches its maximum length again with
            twice the length; None: unless the caller has chosen the length.
        min_tokens: minimum length of an output; the maximum takes precedence.
        no_repeat_ngram_size: no n-gram of this many tokens occurs twice in an output;
            0 allows all.
        rescore_ctc_weight: rank the n-best list again with this weight of the CTC
            probability of the whole text; 0 keeps the ranks.
        first_pass_beam_size: hypotheses of the model of the first pass (Whisper, as
            pretrained or fine-tuned in stage 8), which join the n-best list of a
            transcript, and of which the ``transcript`` bridge reads the best one; 0:
            none.
        rescore_decoder_weight: with a first pass, the list is ranked by this weight of
            that model, ``rescore_ctc_weight`` of CTC, and the rest of the LLM. None:
            both weights are those that stage 11 fitted to the model.
        rescore_translation_weight: with a first pass, translations into English of
            ``asr_st`` join those of the LLM, and are ranked by this weight of that
            model and the rest of the LLM; 0: they are not made. None: that of stage 11.
        hotwords: words and phrases that outputs of any task are biased towards, in the
            language of the output (:mod:`speechllm.text.hotwords`). A model that was
            trained with lists has them in its prompt, too
            (:mod:`speechllm.text.hotword_lists`).
        hotword_bonus: added to the score for each token of a hotword. The default had
            the fewest errors on the development prompts of the mini recipe.
        guard: check outputs against the audio (:mod:`speechllm.inference.guard`);
            None: where the model folder has thresholds.
        word_times: compute start, end and confidence of each word.
        sampling: draw each token instead of searching; the draws of an utterance do
            not depend on its batch.
        temperature, top_k, top_p: distribution that is sampled: the LLM's at this
            temperature, its ``top_k`` most probable tokens (0: all), of these the
            fewest that sum to ``top_p``.
        seed: seed of the draws.
    """

    beam_size: int = 1
    nbest: int = 1
    ctc_weight: float = 0.0
    penalty: float = 0.0
    pre_beam_size: int = 20
    label_bonus: float = 1.0
    tokens_per_second: float = 12.0
    extra_tokens: float = 20.5
    retry_truncated: bool | None = None
    min_tokens: int = 0
    no_repeat_ngram_size: int = 0
    rescore_ctc_weight: float = 0.0
    first_pass_beam_size: int = 0
    rescore_decoder_weight: float | None = None
    rescore_translation_weight: float | None = None
    hotwords: tuple[str, ...] = ()
    hotword_bonus: float = 2.0
    guard: bool | None = None
    word_times: bool = False
    sampling: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def max_tokens(self, seconds: float, task: str = "asr") -> int:
        """Return the maximum output length for ``seconds`` of speech.

        It is doubled for ``asr_st``, whose output is transcript and translation.
        """
        most = int(self.tokens_per_second * seconds + self.extra_tokens)
        return 2 * most if task == "asr_st" else most


#: Types and ranges of the search options.
SEARCH_SCHEMA: Schema = {
    "beam_size": integer(1, 1000),
    "nbest": integer(1, 1000),
    "ctc_weight": number(0, 1),
    "penalty": number(-1e4, 1e4),
    "pre_beam_size": integer(1, 10**6),
    "label_bonus": number(-1e4, 1e4),
    "tokens_per_second": number(0, 1000),
    "extra_tokens": number(0, 10**5),
    "retry_truncated": optional(boolean),
    "min_tokens": integer(0, 10**6),
    "no_repeat_ngram_size": integer(0, 10**5),
    "rescore_ctc_weight": number(0, 1),
    "first_pass_beam_size": integer(0, 1000),
    "rescore_decoder_weight": optional(number(0, 1)),
    "rescore_translation_weight": optional(number(0, 1)),
    "hotwords": lambda value: tuple(list_of(text)(value)),
    "hotword_bonus": number(0, 1e4),
    "guard": optional(boolean),
    "word_times": boolean,
    "sampling": boolean,
    "temperature": number(above=0, most=1e4),
    "top_k": integer(0, 10**6),
    "top_p": number(above=0, most=1),
    "seed": integer(0, 2**63 - 1),
}

#: The same with the options of decoding that do not change the search.
DECODING_SCHEMA: Schema = {
    **SEARCH_SCHEMA,
    "batch_size": integer(1, 10**5),
    "dtype": choice("float32", "bfloat16", "float16", "auto", "4bit"),
    "engine": choice("auto", "eager", "vllm"),
    "num_shards": integer(1, 10**6),
    "shard": integer(1, 10**6),
}


def check_decoding_options(options: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the options of a decoding config or command line, checked.

    Raises:
        UserError: an unknown option, or a value of another type or range; names
            ``place``.
    """
    known = [*option_names(), *(DECODING_SCHEMA.keys() - SEARCH_SCHEMA.keys())]
    for name in options:
        if name not in known:
            raise UserError(
                f"{place}: unknown option {name!r}; known are {', '.join(known)}"
            )
    return check_options(current_names(options), DECODING_SCHEMA, place)


def option_names() -> list[str]:
    """Return the names of all options, old ones included."""
    return [field.name for field in fields(SearchOptions)] + list(ALIASES)


def current_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with the current names in place of old ones."""
    return {ALIASES.get(name, name): value for name, value in options.items()}


def search_options(generation: Mapping[str, Any]) -> SearchOptions:
    """Build search options from keyword arguments or the content of a config.

    Raises:
        UserError: an unknown option, or a value out of its range.
    """
    known = option_names()
    for name in generation:
        if name not in known:
            raise UserError(f"unknown option {name!r}; known are {', '.join(known)}")
    checked = check_options(current_names(generation), SEARCH_SCHEMA, "search options")
    options = SearchOptions(**checked)
    weights = (options.rescore_decoder_weight or 0.0) + options.rescore_ctc_weight
    if weights > 1 + 1e-9:
        raise UserError(
            f"rescore_decoder_weight and rescore_ctc_weight sum to {weights:g}: "
            "at most 1"
        )
    for name in ("rescore_decoder_weight", "rescore_translation_weight"):
        if getattr(options, name) and not options.first_pass_beam_size:
            raise UserError(f"{name} needs first_pass_beam_size: 1 or more")
    if options.sampling and (
        options.beam_size > 1 or options.nbest > 1 or options.ctc_weight > 0
    ):
        raise UserError("sampling draws one output: beam_size 1, nbest 1, ctc_weight 0")
    if options.sampling and options.hotwords:
        raise UserError("hotwords bias a search: not with sampling")
    return options
