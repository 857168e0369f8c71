"""Beam search over many utterances at once, by the LLM alone or jointly with CTC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from speechllm.model.ctc_prefix import CTCPrefixScorer, PrefixStates
from speechllm.model.llm import LanguageModel


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
        tokens_per_second, extra_tokens: an answer has at most
            ``int(tokens_per_second · seconds + extra_tokens)`` tokens (Nue-ASR's
            released code has 4 and 20.5).
        min_tokens: fewest tokens before the end of an answer; the greatest number
            goes before it.
    """

    beam_size: int = 1
    nbest: int = 1
    ctc_weight: float = 0.0
    penalty: float = 0.0
    candidates: int = 20
    tokens_per_second: float = 4.0
    extra_tokens: float = 20.5
    min_tokens: int = 0

    def max_tokens(self, seconds: float) -> int:
        """Most tokens of an answer to so many seconds of speech."""
        return int(self.tokens_per_second * seconds + self.extra_tokens)


@dataclass
class Hypothesis:
    """An answer.

    Attributes:
        tokens: LLM token ids, without the end of text.
        score: what the search ranked it by.
        llm_score: log probability of the tokens and the end.
        ctc_score: log probability of the text by CTC, or None without CTC.
        silent: the last token was one that CTC does not hear, such as a comma.
    """

    tokens: list[int] = field(default_factory=list)
    score: float = 0.0
    llm_score: float = 0.0
    ctc_score: float | None = None
    silent: bool = False


@torch.inference_mode()
def beam_search(
    llm: LanguageModel,
    prompts: Sequence[Tensor],
    max_tokens: Sequence[int],
    options: SearchOptions,
    ctc: CTCPrefixScorer | None = None,
    spell: Sequence[Callable[[list[int]], list[int]] | None] | None = None,
    hints: Sequence[Sequence[int]] | None = None,
) -> list[list[Hypothesis]]:
    """Find the best answers to a batch of prompts.

    Args:
        llm: in evaluation mode.
        prompts: embeddings (positions, hidden) of each utterance.
        max_tokens: most tokens of each answer.
        ctc: scores of the utterances' audio, for joint search.
        spell: for each utterance, a function from token ids to CTC labels, or None
            for an utterance that CTC has no say in (a translation).

    Returns:
        For each utterance at most ``options.nbest`` hypotheses, best first.
    """
    joint = ctc is not None and options.ctc_weight > 0
    beam = options.beam_size
    width = max(beam + 1, options.candidates if joint else 2 * beam)
    width = min(width, llm.config.vocab_size)
    device = prompts[0].device
    cache, mask, log_probs = prefill(llm, prompts)  # (utterances, vocabulary)
    active = list(range(len(prompts)))  # utterance of each group of rows
    spellers = list(spell or [None] * len(prompts))
    hints = list(hints or [()] * len(prompts))
    beams = [[Hypothesis()] for _ in active]  # one at first, then up to beam_size
    labels = [[[]] for _ in active]  # CTC labels of each
    states = ctc.start(torch.tensor(active, device=device)) if joint else None
    finished: list[list[Hypothesis]] = [[] for _ in prompts]
    step = 0
    while True:
        step += 1
        always = [
            [*hints[utterance], llm.eos_id]
            for utterance, hypotheses in zip(active, beams)
            for _ in hypotheses
        ]
        proposals = propose(log_probs, width, always)
        plans = []  # (row, token, llm score, labels behind) of every candidate
        row = 0
        for group, utterance in enumerate(active):
            last = step > max_tokens[utterance]
            for hypothesis, spelt in zip(beams[group], labels[group]):
                for token, log_prob in proposals[row]:
                    end = token == llm.eos_id
                    early = step <= options.min_tokens and not last
                    if (last and not end) or (end and early):
                        continue
                    llm_score = hypothesis.llm_score + log_prob
                    new = spelt
                    if joint and not end and spellers[utterance] is not None:
                        new = spellers[utterance](hypothesis.tokens + [token])
                        if new[: len(spelt)] != spelt:  # the speller looked back
                            new = spelt
                        # unheard tokens cost no CTC score: never two in a row, or
                        # commas would crowd out the words
                        if hypothesis.silent and len(new) == len(spelt):
                            continue
                    plans.append((group, row, token, llm_score, hypothesis, new))
                row += 1
        row_labels = [spelt for group in labels for spelt in group]
        if joint:
            suffixes = [(p[1], p[5][len(row_labels[p[1]]) :]) for p in plans]
            extended = ctc.extend_many(states, suffixes)
            ctc_scores = extended.score.tolist()
            ctc_ends = ctc.finish(extended).tolist()
        ranked: list[list[tuple[float, int]]] = [[] for _ in active]
        for index, (group, _, token, llm_score, hypothesis, _) in enumerate(plans):
            score = llm_score + options.penalty * (len(hypothesis.tokens) + 1)
            if joint and spellers[active[group]] is not None:
                scores = ctc_ends if token == llm.eos_id else ctc_scores
                weight = options.ctc_weight
                score += weight * (scores[index] - llm_score)
            ranked[group].append((score, index))
        keep_groups, keep_plans = [], []
        next_beams, next_labels = [], []
        for group, utterance in enumerate(active):
            ranked[group].sort(key=lambda pair: (-pair[0], plans[pair[1]][2]))
            hypotheses, spelts, chosen = [], [], []
            for rank, (score, index) in enumerate(ranked[group]):
                _, _, token, llm_score, parent, new = plans[index]
                if token == llm.eos_id:
                    if rank < beam:
                        told = joint and spellers[utterance] is not None
                        finished[utterance].append(
                            Hypothesis(
                                parent.tokens,
                                score,
                                llm_score,
                                ctc_ends[index] if told else None,
                            )
                        )
                    continue
                if len(hypotheses) < beam:
                    tokens = parent.tokens + [token]
                    told = joint and spellers[utterance] is not None
                    silent = told and len(new) == len(row_labels[plans[index][1]])
                    hypotheses.append(
                        Hypothesis(tokens, score, llm_score, silent=silent)
                    )
                    spelts.append(new)
                    chosen.append(index)
            done = finished[utterance]
            done.sort(key=lambda h: -h.score)
            del done[options.nbest :]
            full = len(done) >= options.nbest
            if hypotheses and not (full and done[-1].score >= hypotheses[0].score):
                keep_groups.append(group)
                keep_plans += chosen
                next_beams.append(hypotheses)
                next_labels.append(spelts)
        if not keep_groups:
            return finished
        active = [active[group] for group in keep_groups]
        beams, labels = next_beams, next_labels
        if joint:
            states = extended[torch.tensor(keep_plans, device=device)]
        parents = torch.tensor([plans[i][1] for i in keep_plans], device=device)
        tokens = torch.tensor([[plans[i][2]] for i in keep_plans], device=device)
        cache.batch_select_indices(parents)
        mask = torch.cat([mask[parents], mask.new_ones(len(parents), 1)], dim=1)
        hidden = llm.body(llm.embed(tokens), mask, cache)
        log_probs = llm.head(hidden[:, -1]).log_softmax(1)


def prefill(llm: LanguageModel, prompts: Sequence[Tensor]):
    """Read the prompts, padded on the left.

    Returns:
        The cache, the mask (utterances, positions), and the log probabilities of the
        first token (utterances, vocabulary).
    """
    from transformers import DynamicCache

    longest = max(len(p) for p in prompts)
    padded = torch.stack(
        [torch.nn.functional.pad(p, (0, 0, longest - len(p), 0)) for p in prompts]
    )
    lengths = torch.tensor([len(p) for p in prompts], device=padded.device)
    places = torch.arange(longest, device=padded.device)
    mask = (places >= longest - lengths[:, None]).long()
    cache = DynamicCache(config=llm.config)
    hidden = llm.body(padded, mask, cache)
    return cache, mask, llm.head(hidden[:, -1]).log_softmax(1)


def propose(
    log_probs: Tensor, width: int, always: Sequence[Sequence[int]]
) -> list[list[tuple[int, float]]]:
    """The ``width`` likeliest tokens of each row, and those that are ``always`` in it.

    Args:
        log_probs: (rows, vocabulary)
        always: token ids of each row.

    Returns:
        (token, log probability) of each row's candidates, each token once.
    """
    values, tokens = log_probs.topk(width, dim=1)
    flat = torch.tensor([t for row in always for t in row], device=log_probs.device)
    rows = torch.tensor(
        [r for r, row in enumerate(always) for _ in row], device=log_probs.device
    )
    extra = iter(log_probs[rows, flat].tolist())
    return [
        list({**{t: next(extra) for t in row}, **dict(zip(best, scores))}.items())
        for row, best, scores in zip(always, tokens.tolist(), values.tolist())
    ]
