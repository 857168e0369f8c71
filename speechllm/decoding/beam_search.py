"""Beam search over many utterances at once, by the LLM alone or jointly with CTC.

Utterances wait in a queue. Finished ones leave the batch and the next ones join it, so
that the LLM always has a full batch; none of them affects the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from speechllm.decoding.ctc_prefix_scorer import CTCPrefixScorer
from speechllm.decoding.hypothesis import (
    BeamState,
    Candidate,
    Hypothesis,
    SearchRequest,
)
from speechllm.decoding.joint_ctc_scorer import JointCTCScorer
from speechllm.decoding.kv_cache import assign_rows
from speechllm.decoding.llm_scorer import LLMScorer
from speechllm.decoding.options import SearchOptions
from speechllm.decoding.sampling import utterance_rng
from speechllm.decoding.scorer import Scorer
from speechllm.models.llm import LanguageModel
from speechllm.utils.batching import by_length


@torch.inference_mode()
def beam_search(
    llm: LanguageModel,
    requests: Sequence[SearchRequest],
    options: SearchOptions,
    ctc: CTCPrefixScorer | None = None,
    batch_size: int | None = None,
    on_finished: Callable[[int], object] | None = None,
) -> list[list[Hypothesis]]:
    """Find the best outputs.

    Args:
        llm: in evaluation mode.
        requests: one for each utterance.
        options: of the search.
        ctc: CTC prefix scores of the utterances, for joint search.
        batch_size: utterances decoded concurrently; the others wait. All if None.
        on_finished: called with the index of each utterance when it is finished.

    Returns:
        For each utterance at most ``options.nbest`` hypotheses, best first.
    """
    joint = ctc is not None and options.ctc_weight > 0
    if not joint:
        requests = [replace(request, to_ctc_labels=None) for request in requests]
    scorers: list[Scorer] = [
        LLMScorer(llm, [request.prompt for request in requests], options, joint)
    ]
    if ctc is not None and joint:
        scorers.append(JointCTCScorer(ctc, options, llm.eos_id, llm.token_length))
    lengths = [len(request.prompt) for request in requests]
    waiting = deque(by_length(lengths))
    batch_size = batch_size or len(requests)
    results: list[list[Hypothesis]] = [[] for _ in requests]
    beams: list[BeamState] = []
    rows = 0
    while beams or waiting:
        room = batch_size - len(beams)
        if waiting and (not beams or 4 * room >= batch_size):
            new = [waiting.popleft() for _ in range(min(room, len(waiting)))]
            for scorer in scorers:
                new = scorer.prefill(new)
            for row, utterance in enumerate(new, rows):
                beam = BeamState(utterance, requests[utterance])
                beam.hypotheses[0].row = row
                if options.sampling:
                    beam.rng = utterance_rng(options.seed, beam.request.sampling_seed)
                beams.append(beam)
        choices: list[list[Candidate]] = [[] for _ in beams]
        for scorer in scorers:
            scorer.score(choices, beams)
        survivors: list[Candidate] = []
        for beam, candidates in zip(beams, choices):
            chosen = beam.advance(candidates, options, llm.eos_id)
            survivors += chosen
            if not chosen:
                results[beam.utterance] = beam.finished
                if on_finished is not None:
                    on_finished(beam.utterance)
        beams = [beam for beam in beams if beam.hypotheses]
        hypotheses = [h for beam in beams for h in beam.hypotheses]
        order = assign_rows([candidate.parent.row for candidate in survivors])
        for row, index in enumerate(order):
            hypotheses[index].row = row
        survivors = [survivors[index] for index in order]
        for scorer in scorers:
            scorer.select(survivors, [beam.utterance for beam in beams])
        rows = len(survivors)
    return results
