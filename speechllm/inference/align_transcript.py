"""Segmentation of a long recording by its transcript: forced alignment with CTC.

The encoder takes half a minute at most, so a recording is encoded in windows that
overlap; the frames near an edge are those of the neighbouring window. A Viterbi search
over an hour needs a table of frames times labels; so the alignment proceeds in blocks
of a few minutes. A block's path may end at any word, and only its words that end well
before the edge are kept: the next block begins after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechllm.audio.io import SAMPLING_RATE, load_audio
from speechllm.decoding.forced_alignment import (
    Span,
    align_texts,
    loud_frames,
    split_words,
    word_times,
)
from speechllm.inference.speech_to_text import SpeechToText
from speechllm.text.ctc_labels import CTCTokenizer
from speechllm.text.normalization import (
    LANGUAGES_WITHOUT_SPACES,
    ctc_text,
    normalize,
)
from speechllm.text.tasks import Task
from speechllm.utils.errors import UserError

WINDOW_SECONDS, CONTEXT_SECONDS = 20.0, 2.0  # of the encoder
BLOCK_SECONDS, EDGE_SECONDS = 120.0, 20.0  # of the alignment
MIN_SEGMENT, MAX_SEGMENT = 2.0, 15.0  # seconds
_SENTENCE_BONUS = 0.5  # seconds of pause that the end of a sentence is worth
_MARGIN = 0.2  # seconds kept before and after a segment, at most half of the pause
_SENTENCE_END = tuple(".!?…。！？؟।:;")
_FIELDS = 1.5  # times the expected number of words that a block may have


@dataclass(frozen=True)
class TimedWord:
    """A word of a transcript with its times in seconds.

    Attributes:
        ends_sentence: a sentence or a line of the transcript ends with it.
        log_probs: log probability of each of its CTC labels.
    """

    text: str
    start: float
    end: float
    ends_sentence: bool
    log_probs: tuple[float, ...]


@dataclass(frozen=True)
class AlignedSegment:
    """A part of a recording and its text; times in seconds."""

    start: float
    end: float
    text: str


def require_ctc(model: SpeechToText, place: str) -> CTCTokenizer:
    """Return the CTC tokenizer of a model.

    Raises:
        UserError: it has no trained CTC branch.
    """
    if model.ctc_tokenizer is None:
        raise UserError(
            f"{place}: alignment needs {model.missing_ctc()}; give another model with "
            "--align_model, or subtitles (.srt, .vtt) next to the recordings"
        )
    return model.ctc_tokenizer


def align_recording(
    model: SpeechToText, audio: str | Path, text: str, language: str
) -> list[tuple[AlignedSegment, float]]:
    """Cut a recording by its transcript; return segments and CTC's error rates.

    Args:
        model: with a trained CTC branch.
        audio: the recording.
        text: its transcript; the end of a line counts as the end of a sentence.
        language: code of the spoken language.

    Raises:
        UserError: the recording cannot be read, the model has no CTC branch, or the
            transcript does not fit.
    """
    tokenizer = require_ctc(model, "model")
    wave = load_audio(audio)
    log_probs = ctc_log_probs(model, wave, language)
    rate = model.model.encoder.num_frames_per_second
    lines = text.split("\n")
    words = align_words(lines, log_probs, language, tokenizer, rate, wave)
    seconds = round(len(wave) / SAMPLING_RATE, 3)
    found = []
    for one in cut_segments(words, language):
        start, end = round(one.start, 3), min(round(one.end, 3), seconds)
        part = log_probs[round(start * rate) : max(round(end * rate), 1)]
        frames = torch.tensor([len(part)])
        (spoken,) = model.model.ctc_transcripts(part[None], frames)
        error = ctc_error(spoken, one.text, language)
        found.append((AlignedSegment(start, end, one.text), error))
    return found


def ctc_error_of_wave(
    model: SpeechToText, wave: np.ndarray, text: str, language: str
) -> float:
    """Return the error rate of an utterance's CTC transcript (samples,) at 16 kHz."""
    batch = model.encode([wave], [Task("asr", language, language)])
    return ctc_error(batch.ctc_text(0), text, language)


def ctc_error(found: str, text: str, language: str) -> float:
    """Return the character error rate of a CTC transcript."""
    import jiwer

    texts = normalize(text, language, "cer"), normalize(found, language, "cer")
    return round(jiwer.cer(*texts), 4)


@torch.inference_mode()
def ctc_log_probs(
    model: SpeechToText,
    wave: np.ndarray,
    language: str,
) -> Tensor:
    """Return the CTC log probabilities (frames, labels) of a recording of any length.

    Args:
        wave: (samples,) at 16 kHz.
        language: code of the spoken language.
    """
    per_frame = SAMPLING_RATE / model.model.encoder.num_frames_per_second
    step = round(WINDOW_SECONDS * SAMPLING_RATE / per_frame)  # frames
    context = round(CONTEXT_SECONDS * SAMPLING_RATE / per_frame)
    total = max(round(len(wave) / per_frame), 1)
    task = Task("asr", language, language)
    parts = []
    for begin in range(0, total, step):
        end = min(begin + step, total)
        first = max(begin - context, 0)
        window = wave[round(first * per_frame) : round((end + context) * per_frame)]
        if len(window) < SAMPLING_RATE // 10:
            break
        batch = model.encode([window], [task])
        part = batch.log_probs(0)[begin - first :].float().cpu()
        parts.append(part if end == total else part[: end - begin])
    return torch.cat(parts)


def align_words(
    lines: Sequence[str],
    log_probs: Tensor,
    language: str,
    tokenizer: CTCTokenizer,
    frames_per_second: float,
    wave: np.ndarray | None = None,
) -> list[TimedWord]:
    """Return the words of a transcript with their times.

    Args:
        lines: lines of the transcript; the end of one is the end of a sentence.
        log_probs: (frames, labels) of :func:`ctc_log_probs`.
        language: code of the transcript's language.
        tokenizer: text to CTC labels.
        frames_per_second: of the encoder.
        wave: (samples,) at 16 kHz, which the ends of words are refined with.

    Raises:
        UserError: the text has no words, or needs more frames than there are.
    """
    words: list[str] = []
    ends: list[bool] = []
    for line in lines:
        own = split_words(line, language)
        words += own
        closed = [word.rstrip("\"'»”’)").endswith(_SENTENCE_END) for word in own]
        ends += closed[:-1] + [True] * bool(own)
    if not any(ctc_text(word, language) for word in words):
        raise UserError("the transcript has no words")
    spans = _align_blocks(words, log_probs, language, tokenizer, frames_per_second)
    frames = len(log_probs)
    if not all(span.aligned for span in spans):
        raise UserError(
            f"the transcript has more letters than the audio of "
            f"{frames / frames_per_second:.0f} s has room for"
        )
    loud = None
    if wave is not None:
        loud = loud_frames(wave, frames, SAMPLING_RATE / frames_per_second)
    times = word_times(spans, frames, 1 / frames_per_second, loud)
    return [
        TimedWord(word, start, end, closed, span.log_probs)
        for word, (start, end), closed, span in zip(
            words, times, ends, spans, strict=True
        )
    ]


def cut_segments(
    words: Sequence[TimedWord], language: str, max_seconds: float = MAX_SEGMENT
) -> list[AlignedSegment]:
    """Cut timed words into segments, at long pauses and ends of sentences.

    A segment begins and ends at most 0.2 s outside of its words, and not beyond the
    middle of the pause. One word may be longer than ``max_seconds``.
    """
    segments = []
    first = 0
    while first < len(words):
        last = first
        best, best_value = first, -1.0
        while last < len(words):
            length = words[last].end - words[first].start
            if last > first and length > max_seconds:
                break
            if last + 1 == len(words):
                best = last
                break
            pause = words[last + 1].start - words[last].end
            value = pause + _SENTENCE_BONUS * words[last].ends_sentence
            if length < MIN_SEGMENT and pause < MIN_SEGMENT:
                value = -0.5
            if value >= best_value:
                best, best_value = last, value
            last += 1
        segments.append((first, best))
        first = best + 1
    gap = "" if language in LANGUAGES_WITHOUT_SPACES else " "
    found = []
    for first, last in segments:
        before = words[first - 1].end if first else 0.0
        start, end = words[first].start, words[last].end
        after = words[last + 1].start if last + 1 < len(words) else end + 2 * _MARGIN
        text = gap.join(word.text for word in words[first : last + 1])
        start -= min(_MARGIN, max(start - before, 0.0) / 2)
        end += min(_MARGIN, max(after - end, 0.0) / 2)
        found.append(AlignedSegment(max(start, 0.0), end, text))
    return found


def _align_blocks(
    words: Sequence[str],
    log_probs: Tensor,
    language: str,
    tokenizer: CTCTokenizer,
    frames_per_second: float,
) -> list[Span]:
    """Return the span of each word in the frames of the whole recording."""
    block = round(BLOCK_SECONDS * frames_per_second)
    edge = round(EDGE_SECONDS * frames_per_second)
    sizes = np.array([max(len(ctc_text(word, language)), 1) for word in words])
    spans: list[Span] = []
    frame = 0
    while len(log_probs) - frame > 2 * block and len(spans) < len(words):
        rest = sizes[len(spans) :]
        share = _FIELDS * block / (len(log_probs) - frame)
        count = int(np.searchsorted(np.cumsum(rest), share * rest.sum())) + 20
        part = words[len(spans) : len(spans) + count]
        if len(part) == len(words) - len(spans):
            break  # the last words: align them with all frames that are left
        found = align_texts(
            part, language, log_probs[frame : frame + block], tokenizer, open_end=True
        )
        kept = [span for span in found if span.aligned and span.end <= block - edge]
        if not kept:  # no speech in this block: continue after it
            frame += block - edge
            continue
        # A word at the edge of the kept ones may belong to the pause after them.
        kept = kept[: max(len(kept) - 1, 1)]
        spans += [
            Span(span.begin + frame, span.end + frame, span.log_probs) for span in kept
        ]
        frame = spans[-1].end
    found = align_texts(words[len(spans) :], language, log_probs[frame:], tokenizer)
    return spans + [
        Span(span.begin + frame, span.end + frame, span.log_probs, span.aligned)
        for span in found
    ]
