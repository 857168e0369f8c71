"""Beam search over many utterances at once, by the LLM alone or jointly with CTC."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from speechllm.model.ctc_prefix import NEVER, CTCPrefixScorer, PrefixStates
from speechllm.model.llm import LanguageModel

END = -1  # label behind the text that CTC judges, where an answer goes on (asr_st)


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
        no_repeat_ngram_size: no run of so many tokens stands twice in an answer; 0
            allows all.
        rescore_ctc_weight: rank the n-best of the search anew, by this share of CTC's
            probability of the whole text; 0 leaves the ranks as they are.
        guard: whether answers are checked against the audio; None: where the model's
            folder has thresholds for it (:mod:`speechllm.guard`).
        word_times: whether to say when each word was heard, and how sure it is.
    """

    beam_size: int = 1
    nbest: int = 1
    ctc_weight: float = 0.0
    penalty: float = 0.0
    candidates: int = 20
    tokens_per_second: float = 4.0
    extra_tokens: float = 20.5
    min_tokens: int = 0
    no_repeat_ngram_size: int = 0
    rescore_ctc_weight: float = 0.0
    guard: bool | None = None
    word_times: bool = False

    def max_tokens(self, seconds: float, task: str = "asr") -> int:
        """Most tokens of an answer to so many seconds of speech.

        Twice as many where transcript and translation are asked for.
        """
        most = int(self.tokens_per_second * seconds + self.extra_tokens)
        return 2 * most if task == "asr_st" else most


@dataclass
class Hypothesis:
    """An answer, or the beginning of one.

    Attributes:
        tokens: LLM token ids, without the end of text.
        score: what the search ranked it by.
        llm_score: log probability of the tokens and the end.
        ctc_score: log probability of the text by CTC, or None without CTC.
        labels: the text in CTC labels; ``END`` behind them where what CTC judges is
            over.
        silent: the last token was one that CTC does not hear, such as a comma.
    """

    tokens: list[int] = field(default_factory=list)
    score: float = 0.0
    llm_score: float = 0.0
    ctc_score: float | None = None
    labels: list[int] = field(default_factory=list)
    silent: bool = False


@dataclass(slots=True)
class Candidate:
    """A token that may be appended to a hypothesis.

    Attributes:
        row: place of the hypothesis among all that are extended in this step.
        parent: the hypothesis.
        token: the token.
        llm_score: log probability of the hypothesis with it.
        score: what it is ranked by. Until CTC has judged it, the most that it can
            be: a text is never likelier than its beginning.
        labels: CTC labels of the text with it.
        state: place of its CTC state in this step.
        ctc_score: log probability of its text by CTC.
    """

    row: int
    parent: Hypothesis
    token: int
    llm_score: float
    score: float
    labels: list[int]
    state: int
    ctc_score: float | None = None


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
            for an utterance that CTC has no say in (a translation). Labels that end
            with ``END`` say that CTC has heard it all: the token that adds it is
            judged by CTC's end, those behind it by the LLM alone.
        hints: for each utterance, tokens that are candidates at every step beside
            the LLM's own, such as those of the CTC branch's transcript.

    Returns:
        For each utterance at most ``options.nbest`` hypotheses, best first.
    """
    judge = None
    if ctc is not None and options.ctc_weight > 0:
        judge = CTCJudge(ctc, options, llm.eos_id, len(prompts))
    spell = list(spell or [None] * len(prompts)) if judge else [None] * len(prompts)
    hints = hints or [()] * len(prompts)
    width = max(options.beam_size + 1, options.candidates if judge else 0)
    width = min(width, llm.config.vocab_size)
    cache, mask, log_probs = prefill(llm, prompts)  # (utterances, vocabulary)
    active = list(range(len(prompts)))
    beams = [[Hypothesis()] for _ in active]  # of each active utterance
    finished: list[list[Hypothesis]] = [[] for _ in prompts]
    step = 0
    while active:
        step += 1
        always = [
            [*hints[utterance], llm.eos_id]
            for utterance, beam in zip(active, beams)
            for _ in beam
        ]
        if options.no_repeat_ngram_size:
            forbid_repetition(log_probs, beams, options.no_repeat_ngram_size)
        proposals = propose(log_probs, width, always)
        choices: list[list[Candidate]] = []
        row = 0
        for utterance, beam in zip(active, beams):
            ending = step > max_tokens[utterance]
            weight = 0.0 if spell[utterance] is None else options.ctc_weight
            candidates = []
            for hypothesis in beam:
                heard = judge.scores[row] if weight else 0.0
                for token, log_prob in proposals[row]:
                    if log_prob == -math.inf:
                        continue
                    end = token == llm.eos_id
                    # the most tokens go before the fewest
                    if ending != end and (ending or step <= options.min_tokens):
                        continue
                    llm_score = hypothesis.llm_score + log_prob
                    score = (1 - weight) * llm_score + weight * heard
                    score += options.penalty * step
                    labels = hypothesis.labels
                    candidates.append(
                        Candidate(row, hypothesis, token, llm_score, score, labels, row)
                    )
                row += 1
            candidates.sort(key=rank)
            choices.append(candidates)
        if judge:
            judge.choose(choices, [spell[utterance] for utterance in active])
        survivors: list[Candidate] = []
        next_active, next_beams = [], []
        for utterance, candidates in zip(active, choices):
            done, chosen = finished[utterance], []
            for place, candidate in enumerate(candidates):
                if candidate.token != llm.eos_id:
                    chosen.append(candidate)
                elif place < options.beam_size:
                    parent = candidate.parent
                    done.append(
                        Hypothesis(
                            parent.tokens,
                            candidate.score,
                            candidate.llm_score,
                            candidate.ctc_score,
                            parent.labels,
                        )
                    )
            del chosen[options.beam_size :]
            done.sort(key=lambda hypothesis: -hypothesis.score)
            del done[options.nbest :]
            full = len(done) >= options.nbest
            if chosen and not (full and done[-1].score >= chosen[0].score):
                next_active.append(utterance)
                next_beams.append([grown(candidate) for candidate in chosen])
                survivors += chosen
        active, beams = next_active, next_beams
        if not active:
            break
        if judge:
            judge.follow(survivors)
        parents = torch.tensor([c.row for c in survivors], device=mask.device)
        tokens = torch.tensor([[c.token] for c in survivors], device=mask.device)
        cache.batch_select_indices(parents)
        mask = torch.cat([mask[parents], mask.new_ones(len(parents), 1)], dim=1)
        hidden = llm.body(llm.embed(tokens), mask, cache)
        log_probs = llm.head(hidden[:, -1]).log_softmax(1)
    return finished


def forbid_repetition(
    log_probs: Tensor, beams: Sequence[Sequence[Hypothesis]], size: int
) -> None:
    """Make impossible what would be a run of ``size`` tokens that was there before.

    Args:
        log_probs: (hypotheses, vocabulary); changed in place.
        beams: the hypotheses, of each utterance.
        size: at least 1.
    """
    for row, hypothesis in enumerate(h for beam in beams for h in beam):
        tokens = hypothesis.tokens
        last = tokens[len(tokens) - size + 1 :]
        for place in range(len(tokens) - size + 1):
            if tokens[place : place + size - 1] == last:
                log_probs[row, tokens[place + size - 1]] = -math.inf


def rank(candidate: Candidate) -> tuple[float, int]:
    """Sorting key: the best score first; equal ones by token, to be the same always."""
    return -candidate.score, candidate.token


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


class CTCJudge:
    """CTC's say in a joint search.

    Args:
        ctc: scores of the utterances' audio.
        options: of the search.
        eos: the token that ends an answer.
        utterances: how many there are.
    """

    def __init__(
        self, ctc: CTCPrefixScorer, options: SearchOptions, eos: int, utterances: int
    ):
        self.ctc, self.options, self.eos = ctc, options, eos
        self.reset(ctc.start(torch.arange(utterances, device=ctc.lengths.device)))

    def reset(self, states: PrefixStates) -> None:
        """Begin a step with the states of the hypotheses that are extended."""
        self.parts = [states]
        self.scores: list[float] = states.score.tolist()

    def choose(self, choices: list[list[Candidate]], spellers: Sequence) -> None:
        """Keep the candidates that can enter the beam, with CTC in their scores.

        The likeliest are judged first; of the others only those whose most possible
        score is above the worst of a full beam.

        Args:
            choices: sorted candidates of each utterance; changed in place.
            spellers: of each utterance; None where CTC has no say.
        """
        beam = self.options.beam_size
        second = []
        told = [i for i, speller in enumerate(spellers) if speller is not None]
        first = {
            i: [
                c
                for place, c in enumerate(choices[i])
                if place < 2 * beam or c.token == self.eos
            ]
            for i in told
        }
        self.hear([(c, spellers[i]) for i in told for c in first[i]])
        for i in told:
            scores = sorted(c.score for c in first[i] if c.token != self.eos)
            worst = scores[-beam] if len(scores) >= beam else NEVER
            rest = [
                c
                for place, c in enumerate(choices[i])
                if place >= 2 * beam and c.token != self.eos and c.score > worst
            ]
            second += [(c, spellers[i]) for c in rest]
            choices[i] = first[i] + rest
        self.hear(second)
        for i in told:
            choices[i] = sorted((c for c in choices[i] if c.score > NEVER), key=rank)

    def hear(self, pairs: Sequence[tuple[Candidate, Callable]]) -> None:
        """Score candidates by the audio.

        A token that CTC does not hear costs no CTC score. So two in a row are not
        allowed, or commas would crowd out the words.
        """
        heard = []
        for candidate, speller in pairs:
            parent = candidate.parent
            over = parent.labels[-1:] == [END]
            if candidate.token != self.eos and not over:
                labels = speller(parent.tokens + [candidate.token])
                if labels[: len(parent.labels)] != parent.labels:
                    # the speller looked back
                    labels = parent.labels + [END] * (labels[-1:] == [END])
                if len(labels) > len(parent.labels):
                    candidate.labels = labels
                elif parent.silent:
                    candidate.score = NEVER
                    continue
            heard.append(candidate)
        if not heard:
            return
        suffixes = [
            (c.row, [k for k in c.labels[len(c.parent.labels) :] if k != END])
            for c in heard
        ]
        states = self.ctc.extend_many(self.parts[0], suffixes)
        ends = self.ctc.finish(states)
        over = torch.tensor([c.labels[-1:] == [END] for c in heard], device=ends.device)
        states.score = torch.where(over, ends, states.score)
        offset = sum(len(part.last) for part in self.parts)
        self.parts.append(states)
        weight = self.options.ctc_weight
        before, ends = states.score.tolist(), ends.tolist()
        for place, candidate in enumerate(heard):
            candidate.state = offset + place
            score = (ends if candidate.token == self.eos else before)[place]
            candidate.ctc_score = score
            candidate.score += weight * (score - self.scores[candidate.row])

    def follow(self, survivors: Sequence[Candidate]) -> None:
        """Go on with the states of the candidates that are extended next."""
        everything = PrefixStates.join(self.parts)
        places = torch.tensor([c.state for c in survivors])
        self.reset(everything[places.to(everything.last.device)])


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
