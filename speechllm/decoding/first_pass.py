"""First pass: transcripts by an encoder–decoder model of speech."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechllm.audio.io import SAMPLING_RATE
from speechllm.decoding.options import SearchOptions
from speechllm.models.speech_decoder import SpeechDecoder, written_forms
from speechllm.text.hotwords import HotwordState, HotwordTrie, hotword_trie
from speechllm.text.normalization import ctc_text
from speechllm.text.tasks import Task

DECODED_SECONDS = 60  # of padded speech that is decoded at the same time: 0.4 GB


@dataclass
class FirstPass:
    """Transcripts of one utterance by an encoder–decoder model.

    Attributes:
        texts: distinct transcripts, best first, as the decoder writes them.
        wave: (samples,) at 16 kHz.
        states: (frames, dim) its encoder's states; None: computed when needed.
        language: of the speech.
        decoder: the model.
        language_probability: that the speech is in ``language``, by the decoder; None
            from an English-only one.
        translations: distinct translations into English, best first; empty before
            :func:`add_translations`. They are kept for requests of other tasks, too.
        known_scores: log probability of each written form that was scored, as a
            transcript (False) or as a translation (True). A copy without states shares
            them, and the translations.
    """

    texts: list[str]
    wave: np.ndarray
    states: Tensor | None
    language: str
    decoder: SpeechDecoder
    language_probability: float | None = None
    translations: list[str] = field(default_factory=list)
    known_scores: dict[tuple[str, bool], float] = field(
        default_factory=dict, repr=False
    )

    def scores(self, texts: Sequence[str]) -> list[float]:
        """Return the log probability of each transcript, in its best written form.

        The forms are the text as given, normalised, and as a sentence, and those of the
        first pass that differ in case and punctuation only.
        """
        own_forms: dict[str, list[str]] = {}
        for own in self.texts:
            own_forms.setdefault(ctc_text(own, self.language), []).append(own)
        forms = []
        for text in texts:
            plain = ctc_text(text, self.language)
            forms.append([text, *written_forms(plain), *own_forms.get(plain, ())])
        known = self.log_probs({form for group in forms for form in group})
        return [max(known[form] for form in group) for group in forms]

    def translation_scores(self, texts: Sequence[str]) -> list[float]:
        """Return the log probability of each translation into English, as written."""
        known = self.log_probs(set(texts), translate=True)
        return [known[text] for text in texts]

    def log_probs(self, texts: set[str], translate: bool = False) -> dict[str, float]:
        """Return the log probability of texts, computed once for each."""
        known = self.known_scores
        new = sorted(text for text in texts if (text, translate) not in known)
        if new:
            found = self.decoder.log_probs(
                self.encoded(), new, self.language, translate
            )
            known.update(zip(((text, translate) for text in new), found, strict=True))
        return {text: known[text, translate] for text in texts}

    def encoded(self) -> Tensor:
        """Return the states (frames, dim), computed again if they were not kept."""
        if self.states is None:
            (states,) = self.decoder.encode([self.wave])
            return states
        return self.states


def make_first_pass(
    decoder: SpeechDecoder,
    waves: Sequence[np.ndarray],
    languages: Sequence[str],
    beam_size: int,
    known: dict[tuple[bytes, str], FirstPass] | None = None,
    hotwords: tuple[str, ...] = (),
    hotword_bonus: float = 0.0,
) -> list[FirstPass]:
    """Transcribe utterances with an encoder–decoder model.

    The same speech, as of an utterance that is transcribed and translated, is
    transcribed once.

    Args:
        waves: (samples,) of each at 16 kHz.
        languages: of each.
        beam_size: number of hypotheses.
        known: transcripts of earlier calls with the same beam size and hotwords, which
            are not made again; receives the new ones, without their states, which need
            3 MB each.
        hotwords, hotword_bonus: as in ``SearchOptions``.
    """
    keys = [speech_key(*pair) for pair in zip(waves, languages, strict=True)]
    passes = dict(known or {})
    trie = None
    if hotwords:
        tokenizer, *others = decoder.tokenizers
        trie = hotword_trie(tokenizer, hotwords, tuple(others))
    new = {key: row for row, key in enumerate(keys) if key not in passes}
    for part in equally_padded(decoder, waves, list(new.values())):
        states = decoder.encode([waves[row] for row in part])
        spoken = [languages[row] for row in part]
        options: dict[str, Any] = {}
        if trie is not None:
            start = len(decoder.prefix(spoken[0]))
            options["logits_processor"] = [HotwordBias(trie, hotword_bonus, start)]
        texts = decoder.search(states, spoken, beam_size, **options)
        probabilities = decoder.language_probabilities(states)
        for row, found, state, shares in zip(part, texts, states, probabilities):
            language = languages[row]
            passes[keys[row]] = FirstPass(
                found, waves[row], state, language, decoder, shares.get(language)
            )
    if known is not None:
        known.update((key, replace(passes[key], states=None)) for key in new)
    return [passes[key] for key in keys]


def may_translate(task: Task) -> bool:
    """Return whether translations of a first pass can be outputs of a task."""
    return task.name == "asr_st" and task.target == "en"


def add_translations(passes: Sequence[FirstPass], beam_size: int) -> None:
    """Translate utterances into English with the decoder of their first passes.

    Args:
        passes: of one decoder; those with translations keep them.
        beam_size: number of hypotheses.
    """
    new = [first for first in passes if not first.translations]
    if not new:
        return
    decoder, waves = new[0].decoder, [first.wave for first in new]
    for rows in equally_padded(decoder, waves, range(len(new))):
        part = [new[row] for row in rows]
        states = torch.stack([first.encoded() for first in part])
        languages = [first.language for first in part]
        found = decoder.search(states, languages, beam_size, translate=True)
        for first, texts in zip(part, found):
            first.translations[:] = texts


def language_probabilities(
    decoder: SpeechDecoder,
    waves: Sequence[np.ndarray],
    languages: Sequence[str],
    known: dict[tuple[bytes, str], FirstPass] | None = None,
) -> list[float | None]:
    """Return the probability that each utterance is in its language.

    Args:
        waves, languages, known: as for :func:`make_first_pass`.
    """
    found: list[float | None] = [None] * len(waves)
    new = []
    for row, pair in enumerate(zip(waves, languages, strict=True)):
        first = (known or {}).get(speech_key(*pair))
        if first is None:
            new.append(row)
        else:
            found[row] = first.language_probability
    for part in equally_padded(decoder, waves, new):
        states = decoder.encode([waves[row] for row in part])
        for row, shares in zip(part, decoder.language_probabilities(states)):
            found[row] = shares.get(languages[row])
    return found


def speech_key(wave: np.ndarray, language: str) -> tuple[bytes, str]:
    """Return what identifies an utterance (samples,) and its language."""
    return sha256(np.asarray(wave, dtype=np.float32).tobytes()).digest(), language


class HotwordBias:
    """Logits processor of transformers that adds the bonus of hotwords.

    Its own ``sequence_bias`` keeps the bonus of a match that breaks off, and compares
    every hotword with every row in each step.

    Args:
        trie: hotwords in the decoder's tokens.
        bonus: added to the log probability of each token of a hotword.
        start: number of tokens before the transcript.
    """

    def __init__(self, trie: HotwordTrie, bonus: float, start: int):
        self.trie, self.bonus, self.start = trie, bonus, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the log probabilities (rows, vocabulary) after tokens (rows, n)."""
        trie, scores = self.trie, scores.clone()
        for row, tokens in enumerate(input_ids[:, self.start :].tolist()):
            state = functools.reduce(trie.step, tokens, HotwordState())
            gains = trie.gains(state)
            lost = trie.rewarded(state) - trie.rewarded(trie.finish(state))
            scores[row] -= self.bonus * lost
            values = scores.new_tensor([*gains.values()])
            scores[row, [*gains]] += self.bonus * values
        return scores


def equally_padded(
    decoder: SpeechDecoder, waves: Sequence[np.ndarray], rows: Sequence[int]
) -> list[list[int]]:
    """Divide rows of ``waves`` into batches that are padded to the same length."""
    by_length: dict[int, list[int]] = {}
    for row in rows:
        by_length.setdefault(decoder.input_samples(waves[row]), []).append(row)
    batches = []
    for samples, group in sorted(by_length.items()):
        size = DECODED_SECONDS * SAMPLING_RATE // samples
        batches += [group[i : i + size] for i in range(0, len(group), size)]
    return batches


def choose_transcript(
    first: FirstPass,
    ctc_scores: Callable[[list[str]], list[float]],
    options: SearchOptions,
) -> str:
    """Return the best transcript of a first pass by its decoder and CTC, normalised.

    The two have the ratio of ``rescore_decoder_weight`` and ``rescore_ctc_weight``.

    Args:
        ctc_scores: CTC log probability of normalised transcripts.
    """
    texts = list(dict.fromkeys(ctc_text(text, first.language) for text in first.texts))
    if len(texts) < 2:
        return texts[0] if texts else ""
    weight = options.rescore_decoder_weight or 0.0
    total = weight + options.rescore_ctc_weight
    share = weight / total if total else 1.0
    scores = [
        share * by_decoder + (1 - share) * by_ctc
        for by_decoder, by_ctc in zip(first.scores(texts), ctc_scores(texts))
    ]
    return texts[scores.index(max(scores))]
