"""Word times: forced alignment with the CTC branch.

The most probable CTC path of a text (Graves et al. 2006, "Connectionist Temporal
Classification", with a maximum in place of the sum; as in torchaudio's tutorial "Forced
alignment with Wav2Vec2"). CTC emits a label in a frame or two; the word extends beyond
its first and last label (:func:`word_times`).

Characters without a label (a foreign letter, a digit in a language whose numbers cannot
be spelt) are aligned as a wildcard that matches any label: it takes the frames between
the labels around it.

Where labels are BPE pieces, a word begins with its first piece, or after a "▁" alone.
In languages without spaces a word is a character: those of a piece divide its frames.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from speechllm.models.ctc_alignment import (
    forced_align,
    frames_needed,
    viterbi,
)
from speechllm.text.ctc_labels import BLANK, CTCTokenizer, label_runs
from speechllm.text.normalization import (
    LANGUAGES_WITHOUT_SPACES,
    ctc_text,
)
from speechllm.text.number_spelling import spell_numbers

#: Seconds from the start of a word to its first label, and from its last label to its
#: end, where the sound continues: medians over the development prompts of the mini
#: recipe.
LEAD, TAIL = 0.08, 0.06
REACH = 0.4  # seconds within which the sound has to end to belong to the word
PAUSE = 0.1  # seconds; a shorter silence, as before a "t", is inside a word
DROP = 35.0  # dB below the loudest 10 ms of the utterance: silence


@dataclass(frozen=True)
class Span:
    """The frames of one word.

    Attributes:
        begin, end: first frame, and end frame (exclusive).
        log_probs: log probability of each of its labels, at its most probable frame;
            empty for a word without labels.
        aligned: whether it was aligned; otherwise its frames are a proportional share.
    """

    begin: int
    end: int
    log_probs: tuple[float, ...] = ()
    aligned: bool = True

    @property
    def probability(self) -> float:
        """Geometric mean of the probabilities of its labels; 0 without any."""
        if not self.log_probs:
            return 0.0
        return math.exp(sum(self.log_probs) / len(self.log_probs))


def split_words(text: str, language: str) -> list[str]:
    """Split a text into words; in languages without spaces into characters.

    A character that is not a letter stays with the one before it.
    """
    words = text.split()
    if language not in LANGUAGES_WITHOUT_SPACES:
        return words
    pieces: list[str] = []
    for character in "".join(words):
        if pieces and not ctc_text(character, language):
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces


def word_labels(word: str, language: str, tokenizer: CTCTokenizer) -> list[int]:
    """Return the CTC labels of a word; one ``<unk>`` for a run without labels.

    A digit is spelt if the labels are letters only.
    """
    unknown = tokenizer.unknown
    labels = tokenizer(ctc_text(word, language))
    if unknown in labels:
        labels = tokenizer(ctc_text(spell_numbers(word, language), language))
    return [
        label
        for place, label in enumerate(labels)
        if label != unknown or place == 0 or labels[place - 1] != unknown
    ]


def align_spans(
    words: Sequence[Sequence[int]],
    log_probs: Tensor,
    unknown: int,
    space: int | None,
    join: bool = True,
    open_end: bool = False,
) -> list[Span]:
    """Align words with the frames.

    Args:
        words: CTC labels of each; they may be empty.
        log_probs: (frames, labels) of the CTC branch, blank first.
        unknown: the wildcard label.
        space: the label between two words, or None. In a word it has no length.
        join: put it between two words; pieces have their own, and languages without
            spaces have none.
        open_end: the frames may contain the beginning of the text only.

    Returns:
        One span for each word, in order and without overlap. A word without labels
        has no length and is at the end of the one before it. If the text does not fit
        into the frames, they are divided by the number of labels. With ``open_end``
        the words that the frames contain, the last of which may be cut off.
    """
    labels: list[int] = []
    owners: list[int | None] = []
    for index, word in enumerate(words):
        if word and labels and space is not None and join:
            labels.append(space)
            owners.append(None)
        labels += word
        owners += [None if label == space else index for label in word]
    frames = len(log_probs)
    if frames_needed(labels) > frames and not open_end:
        return share_out([len(word) for word in words], frames)
    # the wildcard is nearly as probable as the best label of each frame
    best, best_labels = log_probs.max(1)
    log_probs = log_probs.clone()
    log_probs[:, unknown] = best - 0.01
    if open_end and labels:
        path = viterbi(log_probs, torch.tensor(labels), open_end=True)
        path_scores = log_probs.gather(1, path[:, None])[:, 0]
    else:
        path, path_scores = forced_align(log_probs, labels)
    is_silent = best_labels == BLANK
    if space is not None:
        is_silent |= best_labels == space
    silent, scores = is_silent.tolist(), path_scores.tolist()
    spans: list[Span | None] = [None] * len(words)
    runs = [run for run in label_runs(path.tolist()) if run[0] != 0]
    if open_end:
        reached = [owner for owner in owners[: len(runs)] if owner is not None]
        spans = spans[: max(reached, default=-1) + 1]
    for owner, (label, begin, end) in zip(owners, runs, strict=not open_end):
        if owner is None:
            continue
        found: tuple[float, ...] = ()
        if label != unknown:
            found = (max(scores[begin:end]),)
        else:
            sounding = [t for t in range(begin, end) if not silent[t]]
            if sounding:
                begin, end = sounding[0], sounding[-1] + 1
        before = spans[owner]
        if before is not None:
            begin, found = before.begin, before.log_probs + found
        spans[owner] = Span(begin, end, found)
    place, filled = 0, []
    for span in spans:
        filled.append(span or Span(place, place))
        place = filled[-1].end
    return filled


def align_texts(
    words: Sequence[str],
    language: str,
    log_probs: Tensor,
    tokenizer: CTCTokenizer,
    open_end: bool = False,
) -> list[Span]:
    """Align the words of a text.

    Args:
        words: the words as written, with numbers and punctuation.
        language: its two-letter code.
        log_probs: (frames, labels) of the CTC branch.
        tokenizer: text to CTC labels.
        open_end: as for :func:`align_spans`.
    """
    unknown = tokenizer.unknown
    spaced = language not in LANGUAGES_WITHOUT_SPACES
    if tokenizer.bpe and not spaced:
        units = pieces_of_characters(words, language, tokenizer)
        labels = [own for own, _ in units]
        found = align_spans(labels, log_probs, unknown, None, open_end=open_end)
        sizes = [size for _, size in units[: len(found)]]
        return divide_spans(found, sizes, len(log_probs))
    space = tokenizer.label("▁" if tokenizer.bpe else "<space>")
    return align_spans(
        [word_labels(word, language, tokenizer) for word in words],
        log_probs,
        unknown,
        None if space == unknown else space,
        join=spaced and not tokenizer.bpe,
        open_end=open_end,
    )


def pieces_of_characters(
    words: Sequence[str], language: str, tokenizer: CTCTokenizer
) -> list[tuple[list[int], int]]:
    """Return the pieces of a text without spaces, with their numbers of words.

    Args:
        words: of :func:`split_words`, a character each.

    Returns:
        (labels, number of words) in order. A word is counted with the piece in which it
        begins; one that no piece begins in joins the one before it.
    """
    texts = [ctc_text(word, language) for word in words]
    for index, text in enumerate(texts):
        if tokenizer.unknown in tokenizer(text):
            texts[index] = ctc_text(spell_numbers(words[index], language), language)
    owners = [index for index, text in enumerate(texts) for _ in text]
    units: list[tuple[list[int], int]] = []
    begun = place = 0  # words that have begun, characters that are covered
    for piece in tokenizer.tokens("".join(texts)):
        label = tokenizer.label(piece)
        place += len(piece.replace("▁", ""))
        words_begun = owners[place - 1] + 1 if place else 0
        if words_begun == begun and units:
            units[-1][0].append(label)
        elif words_begun == begun:
            units.append(([label], 0))
        else:
            units.append(([label], words_begun - begun))
        begun = words_begun
    if len(units) > 1 and units[0][1] == 0:  # a "▁" alone belongs to the first word
        (first, _), (labels, size) = units[:2]
        units[:2] = [(first + labels, size)]
    if begun < len(words):
        labels, size = units.pop() if units else ([], 0)
        units.append((labels, size + len(words) - begun))
    return units


def divide_spans(
    spans: Sequence[Span], sizes: Sequence[int], frames: int
) -> list[Span]:
    """Divide spans of pieces between their words.

    The words of a piece of several share the frames up to the next piece; after the
    last piece there is a frame for each at least.

    Args:
        spans: of each piece.
        sizes: number of words of each.
        frames: of the utterance.
    """
    words: list[Span] = []
    for place, (span, size) in enumerate(zip(spans, sizes, strict=True)):
        if size == 1 or not span.aligned or not span.log_probs:
            end = span.end
        elif place + 1 < len(spans):
            end = spans[place + 1].begin
        else:
            end = min(max(span.end, span.begin + size), frames)
        edges = [span.begin + round(i * (end - span.begin) / size) for i in range(size)]
        words += [
            Span(a, b, span.log_probs, span.aligned)
            for a, b in itertools.pairwise([*edges, end])
        ]
    return words


def share_out(sizes: Sequence[int], frames: int) -> list[Span]:
    """Divide the frames in proportion, for a text that does not fit into them."""
    total, done, spans = max(sum(sizes), 1), 0, []
    for size in sizes:
        begin, done = round(frames * done / total), done + size
        spans.append(Span(begin, round(frames * done / total), aligned=False))
    return spans


def word_times(
    spans: Sequence[Span],
    frames: int,
    seconds_per_frame: float,
    loud: Sequence[bool] | None = None,
) -> list[tuple[float, float]]:
    """Return start and end of each word in seconds, in order and without overlap.

    A word extends from its first and last label as far as the sound does, if that
    ends within ``REACH``; else by ``LEAD`` and ``TAIL``. If there is less room between
    two words, they divide it in that proportion. If the sound continues before the
    first word or after the last, as music does, a silence shorter than ``PAUSE`` limits
    them too.

    Args:
        spans: of each word.
        frames: of the utterance.
        seconds_per_frame: of the encoder.
        loud: loud frames, of :func:`loud_frames`; None if unknown.
    """
    known = [True] * frames if loud is None else list(loud)
    loud = bridged(known, seconds_per_frame)
    reach = round(REACH / seconds_per_frame)
    times: list[tuple[float, float]] = []
    for place, span in enumerate(spans):
        start, end = span.begin * seconds_per_frame, span.end * seconds_per_frame
        if span.aligned and span.end > span.begin:
            left = spans[place - 1].end if place else 0
            right = spans[place + 1].begin if place + 1 < len(spans) else frames
            before = loud[max(left, span.begin - reach) : span.begin][::-1]
            after = loud[span.end : min(right, span.end + reach)]
            room = (span.begin - left) * seconds_per_frame
            if place:
                room *= LEAD / (LEAD + TAIL)
            otherwise = min(LEAD, room)
            if place == 0:
                near = known[max(0, span.begin - reach) : span.begin][::-1]
                otherwise = stretch(near, seconds_per_frame, otherwise)
            start -= stretch(before, seconds_per_frame, otherwise)
            room = (right - span.end) * seconds_per_frame
            if place + 1 < len(spans):
                room *= TAIL / (LEAD + TAIL)
            otherwise = min(TAIL, room)
            if place + 1 == len(spans):
                near = known[span.end : span.end + reach]
                otherwise = stretch(near, seconds_per_frame, otherwise)
            end += stretch(after, seconds_per_frame, otherwise)
        times.append((start, end))
    return times


def stretch(loud: Sequence[bool], seconds_per_frame: float, otherwise: float) -> float:
    """Return the seconds until the first silent frame, or ``otherwise`` without one."""
    if all(loud):
        return otherwise
    return list(loud).index(False) * seconds_per_frame


def bridged(loud: Sequence[bool], seconds_per_frame: float) -> list[bool]:
    """Return the frames with silences shorter than ``PAUSE`` marked as loud."""
    found: list[bool] = []
    for value, begin, end in label_runs(list(loud)):
        short = (end - begin) * seconds_per_frame < PAUSE
        inside = begin > 0 and end < len(loud)
        found += [value or (short and inside)] * (end - begin)
    return found


def loud_frames(wave: np.ndarray, frames: int, samples_per_frame: float) -> list[bool]:
    """Return whether each encoder frame is within ``DROP`` of the loudest 10 ms.

    Args:
        wave: (samples,) at 16 kHz.
        frames: number of encoder frames.
    """
    size = len(wave) // 160
    power = np.square(wave[: size * 160].reshape(size, 160)).mean(1)
    floor = power.max(initial=0.0) * 10 ** (-DROP / 10)
    edges = (np.arange(frames + 1) * samples_per_frame / 160).round().astype(int)
    loud = power > floor
    return [bool(loud[a:b].any()) for a, b in itertools.pairwise(edges)]
