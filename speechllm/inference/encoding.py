"""Encoding of utterances in batches of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechllm.audio import SAMPLING_RATE
from speechllm.decoding.encoded_batch import EncodedBatch, sampling_seed
from speechllm.decoding.first_pass import (
    FirstPass,
    add_translations,
    choose_transcript,
    language_probabilities,
    make_first_pass,
    may_translate,
)
from speechllm.decoding.options import SearchOptions
from speechllm.decoding.rescoring import ctc_log_probs
from speechllm.models.bridge import TranscriptBridge
from speechllm.models.speech_decoder import SpeechDecoder
from speechllm.models.speech_llm import SpeechLLM
from speechllm.text.ctc_labels import CTCTokenizer, has_pieces
from speechllm.text.hotword_lists import choose_hotwords
from speechllm.text.prompts import Prompts
from speechllm.text.tasks import Task
from speechllm.utils.batching import groups_of_like_length
from speechllm.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Number of batches that are encoded together and then wait for the LLM.
QUEUE = 8
#: Tasks that a first pass is for.
TRANSCRIBED = ("asr", "asr_st")
#: Encoder batch limits, on a CPU (True) or elsewhere: maximum seconds and maximum
#: padding ratio. Two seconds of speech already use a CPU fully.
ENCODER_BATCH = {True: (30, 0.02), False: (320, 0.1)}


def device_of(model: SpeechLLM) -> torch.device:
    """Return the device of a model."""
    return next(model.parameters()).device


@torch.inference_mode()
def encode_batch(
    model: SpeechLLM,
    prompts: Prompts,
    waves: Sequence[np.ndarray],
    tasks: Sequence[Task],
    first_pass: Sequence[FirstPass | None] | None = None,
    options: SearchOptions | None = None,
) -> EncodedBatch:
    """Encode utterances, in groups of similar length.

    Args:
        model: in evaluation mode. One without an LLM only transcribes.
        prompts: of the tasks.
        waves: (samples,) of each utterance at 16 kHz.
        tasks: task of each.
        first_pass: transcripts of each, or None; a ``transcript`` bridge reads one.
        options: weights by which it is chosen, needed with a first pass; hotwords, of
            which the prompts have those that resemble the transcripts most.

    Raises:
        UserError: an utterance that the encoder cannot take, or a task other than
            ``asr`` without an LLM.
    """
    if model.llm is None and (other := {task.name for task in tasks} - {"asr"}):
        raise UserError(f"task {min(other)!r}: a CTC model only transcribes")
    device = device_of(model)
    seconds, padding = ENCODER_BATCH[device.type == "cpu"]
    lengths = [len(wave) for wave in waves]
    groups = groups_of_like_length(lengths, seconds * SAMPLING_RATE, padding)
    encoded: list = [None] * len(waves)  # (prompt, logits, frames, CTC transcript)
    for group in groups:
        try:
            speech = pad_waves([waves[i] for i in group], device)
            features, frames, logits = model.encode(*speech)
            transcripts = None
            if first_pass is not None and isinstance(model.bridge, TranscriptBridge):
                found = [first_pass[i] for i in group]
                transcripts = best_transcripts(model, found, logits, frames, options)
            parts = texts = [None] * len(group)
            if logits is not None and model.ctc_trained:  # (group, frames, labels)
                texts = model.ctc_transcripts(logits, frames)
                parts = [row[:count] for row, count in zip(logits, frames)]
            if model.llm is None:
                embeds = features[:, :0]  # no prompts
            else:
                tokenizer = model.llm.tokenizer
                firsts = [first_pass[i] if first_pass else None for i in group]
                hotwords = listed_hotwords(prompts, tokenizer, texts, firsts, options)
                pairs = [
                    prompts.tokens(*tasks[i], tokenizer, words)
                    for i, words in zip(group, hotwords)
                ]
                around = (
                    [prefix for prefix, _ in pairs],
                    [suffix for _, suffix in pairs],
                )
                embeds = model.prompt(features, frames, logits, *around, transcripts)
        except ValueError as error:
            raise UserError(str(error)) from error
        for index, *found in zip(group, embeds, parts, frames, texts):
            encoded[index] = found
    embeds, parts, frames, texts = zip(*encoded)
    return EncodedBatch(
        tasks,
        waves,
        embeds,
        None if parts[0] is None else pad_sequence(parts, batch_first=True),
        torch.stack(frames),
        texts,
        [sampling_seed(wave, task) for wave, task in zip(waves, tasks)],
        pieces=model.token_list if has_pieces(model.token_list or ()) else None,
        first_pass=first_pass,
    )


def first_passes(
    decoder: SpeechDecoder,
    waves: Sequence[np.ndarray],
    tasks: Sequence[Task],
    options: SearchOptions,
    known: dict[tuple[bytes, str], FirstPass] | None,
) -> list[FirstPass | None]:
    """Return the first pass of each utterance of ``TRANSCRIBED``, None for others.

    Those of ``asr_st`` into English have translations where these have a weight.

    Args:
        waves: (samples,) of each utterance at 16 kHz.
        options: of the search.
        known: as for ``make_first_pass``.
    """
    rows = [row for row, task in enumerate(tasks) if task.name in TRANSCRIBED]
    made = make_first_pass(
        decoder,
        [waves[row] for row in rows],
        [tasks[row].source for row in rows],
        options.first_pass_beam_size,
        known,
        options.hotwords,
        options.hotword_bonus,
    )
    found = dict(zip(rows, made))
    if options.rescore_translation_weight and decoder.multilingual:
        add_translations(
            [first for row, first in found.items() if may_translate(tasks[row])],
            options.first_pass_beam_size,
        )
    return [found.get(row) for row in range(len(tasks))]


def listed_hotwords(
    prompts: Prompts,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str | None],
    first_pass: Sequence[FirstPass | None],
    options: SearchOptions | None,
) -> list[tuple[str, ...]]:
    """Return the hotwords in the prompt of each utterance.

    Args:
        texts: CTC transcript of each, if there is one.
        first_pass: transcripts of each, or None.
    """
    if options is None or not prompts.max_hotword_tokens:
        return [()] * len(texts)
    transcripts = [
        " ".join([text or "", *(first.texts if first else ())])
        for text, first in zip(texts, first_pass)
    ]
    size = prompts.max_hotword_tokens
    return [
        choose_hotwords(options.hotwords, transcript, tokenizer, size)
        for transcript in transcripts
    ]


def best_transcripts(
    model: SpeechLLM,
    first_pass: Sequence[FirstPass | None],
    logits: Tensor,
    frames: Tensor,
    options: SearchOptions,
) -> list[list[int] | None]:
    """Return the best transcript of each first pass in CTC labels.

    None without a first pass, and where the CTC labels are BPE pieces, whose
    segmentation is not known here.

    Args:
        logits: (batch, frames, labels) of CTC.
        frames: (batch,)
    """
    if has_pieces(model.token_list):
        return [None] * len(first_pass)
    tokenizer = CTCTokenizer(model.token_list)
    found: list[list[int] | None] = []
    for row, first in enumerate(first_pass):
        if first is None:
            found.append(None)
            continue
        log_probs = logits[row, : frames[row]].float().log_softmax(1)

        def ctc_scores(texts: list[str], log_probs: Tensor = log_probs) -> list[float]:
            return ctc_log_probs(log_probs, [tokenizer(text) for text in texts])

        found.append(tokenizer(choose_transcript(first, ctc_scores, options)))
    return found


def language_probabilities_of(
    batch: EncodedBatch,
    decoder: SpeechDecoder,
    known: dict[tuple[bytes, str], FirstPass] | None,
    every: bool,
) -> list[float | None]:
    """Return the probability that each utterance is in its task's language.

    Args:
        decoder: of the first pass.
        known: as for ``make_first_pass``.
        every: compute it where there is no first pass, too.
    """
    passes = batch.first_pass or [None] * len(batch.tasks)
    found = [None if first is None else first.language_probability for first in passes]
    rows = [row for row, first in enumerate(passes) if first is None] if every else []
    waves = [batch.waves[row] for row in rows]
    languages = [batch.tasks[row].source for row in rows]
    more = language_probabilities(decoder, waves, languages, known)
    for row, probability in zip(rows, more, strict=True):
        found[row] = probability
    return found


def pad_waves(
    waves: Sequence[np.ndarray], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Pad waveforms to (batch, samples) and return their lengths (batch,) too."""
    speech = pad_sequence(
        [torch.from_numpy(np.asarray(w, dtype=np.float32)) for w in waves],
        batch_first=True,
    )
    return speech.to(device), torch.tensor([len(w) for w in waves], device=device)
