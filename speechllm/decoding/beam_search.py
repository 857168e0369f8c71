"""Beam search over many utterances at once, by the LLM alone or jointly with CTC.

Utterances wait in a queue. What is finished leaves the batch and the next ones join
it, so that the LLM always has a full batch to read; none of them notices the others.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from speechllm.decoding.ctc_prefix_scorer import CTCPrefixScorer
from speechllm.decoding.hypothesis import Candidate, Hypothesis, Search, allowed, rank
from speechllm.decoding.joint_ctc_scorer import CTCJudge
from speechllm.decoding.llm_scorer import Reader, settle
from speechllm.decoding.options import SearchOptions
from speechllm.decoding.sampling import draw, generator
from speechllm.models.llm import LanguageModel
from speechllm.text.ctc_labels import END
from speechllm.utils.batching import by_length


@torch.inference_mode()
def beam_search(
    llm: LanguageModel,
    prompts: Sequence[Tensor],
    max_tokens: Sequence[int],
    options: SearchOptions,
    ctc: CTCPrefixScorer | None = None,
    spell: Sequence[Callable[[list[int]], list[int]] | None] | None = None,
    hints: Sequence[Sequence[int]] | None = None,
    batch_size: int | None = None,
    keys: Sequence[int] | None = None,
) -> list[list[Hypothesis]]:
    """Find the best answers to prompts.

    Args:
        llm: in evaluation mode.
        prompts: embeddings (positions, hidden) of each utterance.
        max_tokens: most tokens of each answer.
        ctc: scores of the utterances' audio, for joint search.
        spell: for each utterance, a function from token ids to CTC labels, or None
            for an utterance that CTC has no say in (a translation). Labels that end
            with ``END`` say that CTC has heard it all: the token that adds it is
            judged by CTC's end, those behind it by the LLM alone.
        hints: for each utterance, tokens that are candidates at every step beside
            the LLM's own, such as those of the CTC branch's transcript.
        batch_size: utterances at once; the others wait. All of them if None.
        keys: for each utterance, a number that its draws depend on beside the seed.

    Returns:
        For each utterance at most ``options.nbest`` hypotheses, best first.
    """
    judge = None
    if ctc is not None and options.ctc_weight > 0:
        judge = CTCJudge(ctc, options, llm.eos_id, llm.token_length)
    spell = list(spell or [None] * len(prompts)) if judge else [None] * len(prompts)
    hints = hints or [()] * len(prompts)
    keys = keys or [0] * len(prompts)
    waiting = deque(
        Search(index, max_tokens[index], hints[index], spell[index])
        for index in by_length([len(prompt) for prompt in prompts])
    )
    batch_size = batch_size or len(prompts)
    results: list[list[Hypothesis]] = [[] for _ in prompts]
    reader = Reader(llm)
    active: list[Search] = []
    log_probs: Tensor | None = None  # (rows, vocabulary) of the next token
    while active or waiting:
        room = batch_size - len(active)
        if waiting and (not active or 4 * room >= batch_size):
            new = [waiting.popleft() for _ in range(min(room, len(waiting)))]
            order, first = reader.join([prompts[search.utterance] for search in new])
            new = [new[place] for place in order]
            rows = 0 if log_probs is None else len(log_probs)
            for row, search in enumerate(new, rows):
                search.beam[0].row = row
                if options.sampling:
                    search.draws = generator(options.seed, keys[search.utterance])
            log_probs = first if log_probs is None else torch.cat([log_probs, first])
            active += new
            if judge:
                judge.join([search.utterance for search in new])
        if options.no_repeat_ngram_size:
            growing = [h for search in active for h in search.beam]
            forbid_repetition(log_probs, growing, options.no_repeat_ngram_size)
        if options.sampling:
            choices = draw(log_probs, active, options, llm.eos_id)
        else:
            choices = propose(log_probs, active, options, llm.eos_id, judge)
        if judge:
            judge.choose(choices, active)
        survivors: list[Candidate] = []
        for search, candidates in zip(active, choices):
            chosen = advance(search, candidates, options, llm.eos_id)
            survivors += chosen
            if not chosen:
                results[search.utterance] = search.finished
        active = [search for search in active if search.beam]
        parents = [c.parent.row for c in survivors]
        order = settle(parents)
        hypotheses = [h for search in active for h in search.beam]
        for row, index in enumerate(order):
            hypotheses[index].row = row
        survivors = [survivors[index] for index in order]
        if judge:
            judge.follow(survivors, [search.utterance for search in active])
        log_probs = reader.step(
            [parents[index] for index in order], [c.token for c in survivors]
        )
    return results


def advance(
    search: Search, candidates: Sequence[Candidate], options: SearchOptions, eos: int
) -> list[Candidate]:
    """Let one utterance's beam be what its candidates, best first, make of it.

    A hypothesis that is behind the worst of a full n-best cannot be among it any
    more, since scores fall with each token: it is dropped.

    Returns:
        The candidates that are the new beam.
    """
    chosen = []
    for place, candidate in enumerate(candidates):
        if candidate.token != eos:
            chosen.append(candidate)
        elif place < options.beam_size:
            parent = candidate.parent
            search.finished.append(
                Hypothesis(
                    parent.tokens,
                    candidate.score,
                    candidate.llm_score,
                    candidate.ctc_score,
                    parent.labels,
                )
            )
    search.finished.sort(key=lambda hypothesis: -hypothesis.score)
    del search.finished[options.nbest :]
    if len(search.finished) >= options.nbest:
        search.floor = search.finished[-1].score
    del chosen[options.beam_size :]
    chosen = [c for c in chosen if c.score > search.floor]
    search.beam = [grown(candidate) for candidate in chosen]
    return chosen


def propose(
    log_probs: Tensor,
    active: Sequence[Search],
    options: SearchOptions,
    eos: int,
    judge: CTCJudge | None,
) -> list[list[Candidate]]:
    """What each utterance's hypotheses may grow into, the likeliest first.

    Args:
        log_probs: (rows, vocabulary) of the next token.
        judge: where CTC has a say.
    """
    width = max(options.beam_size + 1, options.candidates if judge else 0)
    width = min(width, log_probs.shape[1])
    always: list[Sequence[int]] = [()] * len(log_probs)
    for search in active:
        for hypothesis in search.beam:
            always[hypothesis.row] = [*search.hints, eos]
    proposals = likeliest(log_probs, width, always)
    choices = []
    for search in active:
        weight = 0.0 if search.spell is None else options.ctc_weight
        step = len(search.beam[0].tokens) + 1
        candidates = []
        for hypothesis in search.beam:
            row = hypothesis.row
            base = options.penalty * step
            if weight:
                base += weight * judge.scores[row]
            for token, log_prob in proposals[row]:
                if not allowed(token == eos, step, search, options):
                    continue
                llm_score = hypothesis.llm_score + log_prob
                score = (1 - weight) * llm_score + base
                if score > search.floor and log_prob > -math.inf:
                    candidates.append(
                        Candidate(
                            hypothesis, token, llm_score, score, hypothesis.labels, row
                        )
                    )
        candidates.sort(key=rank)
        choices.append(candidates)
    return choices


def likeliest(
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


def forbid_repetition(
    log_probs: Tensor, hypotheses: Sequence[Hypothesis], size: int
) -> None:
    """Make impossible what would be a run of ``size`` tokens that was there before.

    Args:
        log_probs: (rows, vocabulary); changed in place.
        size: at least 1.
    """
    for hypothesis in hypotheses:
        tokens = hypothesis.tokens
        last = tokens[len(tokens) - size + 1 :]
        for place in range(len(tokens) - size + 1):
            if tokens[place : place + size - 1] == last:
                log_probs[hypothesis.row, tokens[place + size - 1]] = -math.inf


def grown(candidate: Candidate) -> Hypothesis:
    """The hypothesis that a candidate makes of its parent."""
    return Hypothesis(
        candidate.parent.tokens + [candidate.token],
        candidate.score,
        candidate.llm_score,
        labels=candidate.labels,
        silent=candidate.labels is candidate.parent.labels
        and candidate.labels[-1:] != [END],
    )
