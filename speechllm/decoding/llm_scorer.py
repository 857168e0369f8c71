"""LLM scorer: incremental decoding of a batch to which rows are added and dropped."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from speechllm.decoding.hypothesis import BeamState, Candidate, Hypothesis, by_score
from speechllm.decoding.kv_cache import BeamKVCache
from speechllm.decoding.options import SearchOptions
from speechllm.decoding.sampling import sample
from speechllm.decoding.step_graphs import StepGraphs
from speechllm.models.llm import LanguageModel
from speechllm.utils.batching import groups_of_like_length


class LLMScorer:
    """LLM scorer: log probabilities of the next token, one row for each hypothesis.

    Args:
        llm: in evaluation mode.
        prompts: (positions, hidden) embeddings of each utterance.
        options: of the search.
        joint: True if CTC scores the candidates too.
    """

    def __init__(
        self,
        llm: LanguageModel,
        prompts: Sequence[Tensor],
        options: SearchOptions,
        joint: bool = False,
    ):
        self.llm, self.prompts, self.options = llm, prompts, options
        self.candidates = max(
            options.beam_size + 1, options.pre_beam_size if joint else 0
        )
        self.graphs = StepGraphs(llm) if llm.step_graphs else None
        self.cache = StepGraphs.new_cache() if llm.step_graphs else BeamKVCache()
        self.lengths: list[int] = []  # positions of each row
        self.outputs: list[tuple[int, list[int]]] = []  # utterance, tokens of each row
        self.log_probs = torch.empty(0, 0)  # (rows, vocabulary) of the next token

    def prefill(self, utterances: Sequence[int]) -> list[int]:
        """Run the LLM over the prompts of new utterances; see :class:`Scorer`."""
        order: list[int] = []
        last: list[Tensor] = []
        lengths_of = [len(self.prompts[utterance]) for utterance in utterances]
        for group in groups_of_like_length(lengths_of):
            prompts = [self.prompts[utterances[i]] for i in group]
            lengths = [len(prompt) for prompt in prompts]
            longest = max(lengths)
            padded = torch.stack(  # (group, positions, hidden)
                [F.pad(p, (0, 0, longest - len(p), 0)) for p in prompts]
            )
            cache = BeamKVCache()
            hidden = self.llm.body(padded, self.mask(lengths), cache)
            last.append(hidden[:, -1])
            self.cache.append(cache)
            self.lengths += lengths
            order += [utterances[i] for i in group]
        new = self.llm.head(torch.cat(last)).log_softmax(1)
        rows = len(self.log_probs)
        self.log_probs = torch.cat([self.log_probs, new]) if rows else new
        return order

    def score(self, choices: list[list[Candidate]], beams: Sequence[BeamState]) -> None:
        """Propose candidates; see :class:`Scorer`."""
        rows = [(h.row, b.utterance, h.tokens) for b in beams for h in b.hypotheses]
        self.outputs = [(utterance, tokens) for _, utterance, tokens in sorted(rows)]
        if self.options.no_repeat_ngram_size:
            growing = [h for beam in beams for h in beam.hypotheses]
            forbid_repetition(
                self.log_probs, growing, self.options.no_repeat_ngram_size
            )
        if self.options.sampling:
            choices[:] = sample(self.log_probs, beams, self.options, self.llm.eos_id)
        else:
            choices[:] = self.propose(beams)

    def propose(self, beams: Sequence[BeamState]) -> list[list[Candidate]]:
        """Return the candidates of each utterance, best first."""
        options, eos = self.options, self.llm.eos_id
        always: list[Sequence[int]] = [()] * len(self.log_probs)
        for beam in beams:
            for hypothesis in beam.hypotheses:
                always[hypothesis.row] = [*beam.request.extra_candidates, eos]
        width = min(self.candidates, self.log_probs.shape[1])
        bias = self.hotword_bias(beams)
        proposals = most_probable(self.log_probs, width, always, bias)
        choices = []
        for beam in beams:
            has_ctc = beam.request.to_ctc_labels is not None
            weight = options.ctc_weight if has_ctc else 0.0
            may_end = beam.allows(True, options)
            may_continue = beam.allows(False, options)
            end_threshold = beam.threshold(options, end=True)
            go_threshold = beam.threshold(options)
            trie = beam.request.hotwords
            candidates = []
            for hypothesis in beam.hypotheses:
                row = hypothesis.row
                base = options.penalty * beam.step
                if weight:
                    base += weight * (hypothesis.ctc_score or 0.0)
                labels = hypothesis.ctc_labels
                if labels is None:
                    labels = []
                for token, log_prob in proposals[row]:
                    if not (may_end if token == eos else may_continue):
                        continue
                    llm_score = hypothesis.llm_score + log_prob
                    hotwords, bonus = hypothesis.hotwords, 0.0
                    if trie is not None:
                        hotwords = (
                            trie.finish(hotwords)
                            if token == eos
                            else trie.step(hotwords, token)
                        )
                        bonus = options.hotword_bonus * trie.rewarded(hotwords)
                    score = (1 - weight) * llm_score + base + bonus
                    threshold = end_threshold if token == eos else go_threshold
                    if score > threshold and log_prob > -math.inf:
                        candidates.append(
                            Candidate(
                                hypothesis,
                                token,
                                log_prob,
                                llm_score,
                                score,
                                labels,
                                row,
                                unlabelled_cost=hypothesis.unlabelled_cost,
                                hotwords=hotwords,
                                bonus=bonus,
                            )
                        )
            candidates.sort(key=by_score)
            choices.append(candidates)
        return choices

    def hotword_bias(self, beams: Sequence[BeamState]) -> Tensor | None:
        """Return the bonus (rows, vocabulary) of each token over those of no hotword.

        With it a hotword's token can be among the proposals. None without hotwords.
        """
        if all(beam.request.hotwords is None for beam in beams):
            return None
        bias = torch.zeros_like(self.log_probs)
        for beam in beams:
            if (trie := beam.request.hotwords) is None:
                continue
            for hypothesis in beam.hypotheses:
                gains = trie.gains(hypothesis.hotwords)
                values = torch.tensor([*gains.values()]).to(bias)
                bias[hypothesis.row, [*gains]] = self.options.hotword_bonus * values
        return bias

    def select(self, survivors: Sequence[Candidate], utterances: Sequence[int]) -> None:
        """Run the LLM over the survivors' tokens; see :class:`Scorer`."""
        parents = [candidate.parent.row for candidate in survivors]
        lengths = [self.lengths[row] for row in parents]
        self.cache.select(parents, [self.changed(*pair) for pair in enumerate(parents)])
        self.outputs = []
        self.cache.trim(max(lengths, default=0))
        self.lengths = [length + 1 for length in lengths]
        if not survivors:
            self.log_probs = self.log_probs[:0]
            return
        ids = [candidate.token for candidate in survivors]
        if self.graphs is not None:
            self.log_probs = self.graphs.log_probs(ids, self.lengths, self.cache)
            return
        tokens = torch.tensor(ids, device=self.device)
        hidden = self.llm.body(  # (rows, 1, hidden)
            self.llm.embed(tokens[:, None]), self.mask(self.lengths), self.cache
        )
        self.log_probs = self.llm.head(hidden[:, -1]).log_softmax(1)

    def changed(self, row: int, source: int) -> int:
        """Return the number of last positions in which a row differs from another.

        Hypotheses of an utterance that begin with the same tokens are copies of one
        row up to there.
        """
        longest = self.cache.get_seq_length()
        if max(row, source) >= len(self.outputs):
            return longest
        (old_utterance, old_tokens), (utterance, tokens) = (
            self.outputs[row],
            self.outputs[source],
        )
        if old_utterance != utterance:
            return longest
        pairs = zip(tokens, old_tokens)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(tokens))
        return len(tokens) - same

    @property
    def device(self) -> torch.device:
        """Device of the LLM."""
        embeddings = self.llm.causal_lm.get_input_embeddings()  # type: ignore[operator]
        return torch.device(embeddings.weight.device)

    def mask(self, lengths: Sequence[int]) -> Tensor:
        """Return the attention mask (rows, positions) of rows aligned at the end."""
        sizes = torch.tensor(lengths, device=self.device)[:, None]
        longest = max(lengths)
        places = torch.arange(longest, device=self.device)
        return (places >= longest - sizes).long()


def most_probable(
    log_probs: Tensor,
    width: int,
    always: Sequence[Sequence[int]],
    bias: Tensor | None = None,
) -> list[list[tuple[int, float]]]:
    """Return the ``width`` most probable tokens of each row, and the ``always`` ones.

    Args:
        log_probs: (rows, vocabulary)
        always: token ids of each row.
        bias: (rows, vocabulary), added to decide which are the most probable.

    Returns:
        (token, log probability) of each row's candidates, each token once.
    """
    values, tokens = (log_probs if bias is None else log_probs + bias).topk(width, 1)
    if bias is not None:
        values = log_probs.gather(1, tokens)
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
    """Set tokens that would repeat an n-gram of ``size`` tokens to minus infinity.

    Args:
        log_probs: (rows, vocabulary), changed in place.
        size: at least 1.
    """
    for hypothesis in hypotheses:
        tokens = hypothesis.tokens
        last = tokens[len(tokens) - size + 1 :]
        for place in range(len(tokens) - size + 1):
            if tokens[place : place + size - 1] == last:
                log_probs[hypothesis.row, tokens[place + size - 1]] = -math.inf
