"""Long-form transcription: recordings of any length to text with times.

    from speechllm import SpeechToText, transcribe_long
    from speechllm.audio import stream_audio

    model = SpeechToText.from_pretrained("exp/speechllm_train/model")
    streams = [stream_audio("lecture.mp3"), stream_audio("talk.mp4")]
    for transcription in transcribe_long(model, streams, language="en"):
        for segment in transcription.result.passages:
            print(segment.start, segment.end, segment.text)

Audio is read as a stream and cut at pauses (:mod:`speechllm.audio.segmentation`). The
segments of all recordings are decoded together in batches of similar length. A pause
may lie within a sentence, so adjacent segments with a short gap are also decoded as one
merged segment, and the hypothesis with the higher score is used. Apart from the texts,
memory does not depend on the length or number of recordings.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from speechllm.audio.io import SAMPLING_RATE
from speechllm.audio.segmentation import (
    MAX_SECONDS,
    PAUSE_SECONDS,
    Cutting,
    SpeechSegment,
    speech_segments,
)
from speechllm.decoding.result import Result, Segment, Word
from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES
from speechllm.utils.errors import UserError

if TYPE_CHECKING:
    from speechllm.inference.speech_to_text import SpeechToText


NO_SPEECH = "no speech"  # flag of a recording
MAX_MERGE_GAP = 0.1  # seconds between two segments that may be merged, without margins
_BATCHES_AHEAD = 8  # read ahead, to batch segments of similar length


@dataclass(frozen=True)
class Transcription:
    """Result or error of a recording.

    Attributes:
        seconds: length of the audio that could be read.
        result: its text, with ``passages``; None if it failed completely.
        error: message for the user, or None. With a result, the reason why the text
            is incomplete: the recording is truncated, or decoding a segment failed.
    """

    seconds: float
    result: Result | None
    error: str | None = None


def transcribe_long(
    model: SpeechToText,
    streams: Iterable[Iterable[np.ndarray]],
    task: str = "asr",
    language: str | None = None,
    target_language: str | None = None,
    max_seconds: float = MAX_SECONDS,
    pause_seconds: float = PAUSE_SECONDS,
    batch_size: int = 8,
    progress: Callable[[float], object] | None = None,
    **options,
) -> Iterator[Transcription]:
    """Turn recordings of any length into text.

    Args:
        model: from :meth:`SpeechToText.from_pretrained`.
        streams: for each recording an iterable of float32 blocks ``(samples,)`` at
            16 kHz, such as :func:`speechllm.audio.io.stream_audio`.
        task, language, target_language: as in :meth:`SpeechToText.transcribe`.
        max_seconds: maximum length of a segment; shorter recordings are decoded
            whole. The encoder's limit applies too.
        pause_seconds: minimum length of a pause that always ends a segment.
        batch_size: segments decoded concurrently; it does not change their text.
        progress: called with the seconds of audio completed since the last call.
        **options: ``word_times`` and others of :meth:`SpeechToText.transcribe`.

    Yields:
        One transcription for each recording, in order, as soon as it is complete. A
        recording without speech has an empty text and the flag ``"no speech"``.

    Raises:
        UserError: an unknown task, language or option, or ``max_seconds`` is too
            short. Errors of a single recording are in its transcription instead.
    """
    request = {
        "task": task,
        "language": language,
        "target_language": target_language,
        "batch_size": batch_size,
        **options,
    }
    requested = model.request(task, language, target_language)
    if model.max_samples is not None:
        max_seconds = min(max_seconds, model.max_samples / SAMPLING_RATE)
    cutting = Cutting(max_seconds, pause_seconds)
    model.options(options)
    opened: deque[_Recording] = deque()
    pending: list[_Piece] = []

    def decode() -> None:
        decode_pieces(model, pending, request)
        pending.clear()
        for recording in opened:
            recording.report(progress)

    for stream in streams:
        recording = _Recording()
        opened.append(recording)
        for piece in recording.cut(stream, cutting):
            pending.append(piece)
            if len(pending) >= batch_size * _BATCHES_AHEAD:
                decode()
        recording.ended = True
        while opened and opened[0].done:
            opened[0].report(progress)
            yield opened.popleft().transcription(requested.source, requested.target)
    decode()
    for recording in opened:
        yield recording.transcription(requested.source, requested.target)


@dataclass
class _Piece:
    """A segment of a recording, before or after decoding.

    Attributes:
        samples: float32 ``(samples,)`` at 16 kHz; None once it is decoded.
        result, error: output of decoding.
        merged: this segment merged with the previous one, if the gap is short.
    """

    segment: SpeechSegment
    samples: np.ndarray | None
    result: Result | None = None
    error: str | None = None
    merged: _Piece | None = None

    @property
    def pending(self) -> bool:
        return self.samples is not None or (
            self.merged is not None and self.merged.pending
        )


@dataclass
class _Recording:
    """State of a recording that is being transcribed."""

    pieces: list[_Piece] = field(default_factory=list)
    samples: int = 0
    reported: float = 0.0
    error: str | None = None
    ended: bool = False

    @property
    def seconds(self) -> float:
        return self.samples / SAMPLING_RATE

    @property
    def done(self) -> bool:
        return self.ended and not any(piece.pending for piece in self.pieces)

    def cut(self, stream: Iterable[np.ndarray], cutting: Cutting) -> Iterator[_Piece]:
        """Yield the pieces to decode; store an error of the stream in ``error``."""
        previous: tuple[SpeechSegment, np.ndarray] | None = None
        for segment, samples in speech_segments(self.read(stream), cutting):
            piece = _Piece(segment, samples)
            self.pieces.append(piece)
            yield piece
            if previous is not None:
                piece.merged = merge_with_previous(
                    *previous, segment, samples, cutting.longest
                )
            if piece.merged is not None:
                yield piece.merged
            previous = segment, samples

    def read(self, stream: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        try:
            for block in stream:
                self.samples += len(block)
                yield block
        except UserError as error:
            self.error = str(error)

    def report(self, progress: Callable[[float], object] | None) -> None:
        if progress is not None:
            progress(self.seconds - self.reported)
        self.reported = self.seconds

    def transcription(self, source: str, target: str) -> Transcription:
        problem = self.error or next((p.error for p in self.pieces if p.error), None)
        decoded = [
            (p.segment, p.result)
            for p in choose_most_probable(self.pieces)
            if p.result is not None
        ]
        if problem is not None and not decoded:
            return Transcription(self.seconds, None, problem)
        return Transcription(self.seconds, join(decoded, source, target), problem)


def merge_with_previous(
    left: SpeechSegment,
    left_samples: np.ndarray,
    right: SpeechSegment,
    right_samples: np.ndarray,
    longest: float,
) -> _Piece | None:
    """Merge adjacent segments, with silence in the gap between them.

    Args:
        left_samples, right_samples: ``(samples,)`` at 16 kHz.
        longest: maximum length of the merged segment in seconds.

    Returns:
        The merged piece; None if they overlap, or the gap or the result is too long.
    """
    gap = right.start - left.end
    if not 0 <= gap <= MAX_MERGE_GAP or right.end - left.start > longest:
        return None
    silence = np.zeros(round(gap * SAMPLING_RATE), np.float32)
    samples = np.concatenate([left_samples, silence, right_samples])
    return _Piece(SpeechSegment(left.start, right.end), samples)


def choose_most_probable(pieces: Sequence[_Piece]) -> list[_Piece]:
    """Choose between single and merged segments so that the total score is highest.

    Segments flagged by the guard are not merged: their scores are not comparable.

    Args:
        pieces: segments of a recording in order, decoded.

    Returns:
        The chosen pieces in order, which cover all segments once.
    """

    def score(piece: _Piece | None) -> float | None:
        if piece is None or piece.result is None or piece.result.flags:
            return None
        return piece.result.score

    best: list[float] = [0.0]  # highest score of the first n pieces
    use_merged: list[bool] = []  # whether it has the nth piece merged
    for number, piece in enumerate(pieces):
        single_total = best[-1] + (score(piece) or 0.0)
        parts = [score(pieces[number - 1]) if number else None, score(piece)]
        merged_score = score(piece.merged)
        merged_total = None
        if merged_score is not None and None not in parts:
            merged_total = best[-2] + merged_score
        if merged_total is not None and merged_total > single_total:
            best.append(merged_total)
            use_merged.append(True)
        else:
            best.append(single_total)
            use_merged.append(False)
    chosen: list[_Piece] = []
    number = len(pieces) - 1
    while number >= 0:
        merged = pieces[number].merged
        if use_merged[number] and merged is not None:
            chosen.append(merged)
            number -= 2
        else:
            chosen.append(pieces[number])
            number -= 1
    return chosen[::-1]


def decode_pieces(model: SpeechToText, pieces: Sequence[_Piece], request: dict) -> None:
    """Decode segments together, or one by one if that raises a UserError."""
    if not pieces:
        return
    try:
        results = model.transcribe([piece.samples for piece in pieces], **request)
    except UserError as error:
        if len(pieces) > 1:
            for piece in pieces:
                decode_pieces(model, [piece], request)
        else:
            pieces[0].error, pieces[0].samples = str(error), None
        return
    for piece, result in zip(pieces, results, strict=True):
        piece.result, piece.samples = result, None


def join(
    pieces: Sequence[tuple[SpeechSegment, Result]], source: str, target: str
) -> Result:
    """Join the results of a recording's segments into one result.

    Texts of overlapping segments are merged by word times if there are any, else at
    the longest common run of words.

    Args:
        pieces: segments in order with their results.
        source, target: language codes of the speech and of the text.
    """
    if not pieces:
        return Result("", [], 0.0, flags=[NO_SPEECH], passages=[])
    parts = [shift_times(result, segment) for segment, result in pieces]
    merge_overlaps(parts, source, target)
    results = [part.result for part in parts]
    passages = [
        Segment(part.start, part.end, part.result.text)
        for part in parts
        if part.result.text.strip()
    ]
    if len(parts) == 1:
        return replace(results[0], passages=passages)
    text = join_texts([r.text for r in results], target) or ""
    score = sum(r.score for r in results)
    unguarded = None
    if any(r.unguarded is not None for r in results):
        before = [r.text if r.unguarded is None else r.unguarded for r in results]
        unguarded = join_texts(before, target)
    words = None
    if any(r.words is not None for r in results):
        words = [word for r in results for word in r.words or ()]
    weighted = [
        (r.confidence, len(r.text)) for r in results if r.confidence is not None
    ]
    characters = sum(length for _, length in weighted)
    return Result(
        text=text,
        tokens=[token for r in results for token in r.tokens],
        score=score,
        ctc_text=join_texts([r.ctc_text for r in results], source),
        nbest=[(text, score)],
        transcript=join_texts([r.transcript for r in results], source),
        flags=sorted({flag for r in results for flag in r.flags}),
        unguarded=unguarded,
        words=words,
        confidence=(
            sum(c * n for c, n in weighted) / characters if characters else None
        ),
        passages=passages,
    )


def join_texts(texts: Sequence[str | None], language: str) -> str | None:
    """Join texts, with spaces in languages that have them; None if all are None."""
    if all(text is None for text in texts):
        return None
    gap = "" if language in LANGUAGES_WITHOUT_SPACES else " "
    return gap.join(" ".join(text.split()) for text in texts if text)


@dataclass
class _Part:
    """A segment's result with times in the recording, changed by merging."""

    start: float
    end: float
    result: Result


def shift_times(result: Result, segment: SpeechSegment) -> _Part:
    """Convert a result's times to seconds from the beginning of the recording."""
    if result.words is not None:
        words = [
            replace(w, start=w.start + segment.start, end=w.end + segment.start)
            for w in result.words
        ]
        result = replace(result, words=words)
    return _Part(segment.start, segment.end, result)


def merge_overlaps(parts: Sequence[_Part], source: str, target: str) -> None:
    """Remove duplicate text of adjacent segments that overlap, in place."""
    for left, right in pairwise(parts):
        shared = left.end - right.start
        if shared <= 0:
            continue
        shares = shared / (left.end - left.start), shared / (right.end - right.start)
        middle = right.start + shared / 2
        one, two = left.result, right.result
        changes: tuple[dict, dict] = {}, {}
        for name, language in [
            ("text", target),
            ("ctc_text", source),
            ("transcript", source),
            ("unguarded", target),
        ]:
            texts = getattr(one, name), getattr(two, name)
            if None not in texts:
                merged = merge_texts(*texts, shares, language)
                changes[0][name], changes[1][name] = merged
        if one.words is not None and two.words is not None:
            kept = merge_words(one.words, two.words, middle)
            gap = "" if target in LANGUAGES_WITHOUT_SPACES else " "
            for change, words in zip(changes, kept):
                change |= {"words": words, "text": gap.join(w.text for w in words)}
        left.result = replace(one, **changes[0])
        right.result = replace(two, **changes[1])
        left.end = right.start = middle


def merge_words(
    left: Sequence[Word], right: Sequence[Word], middle: float
) -> tuple[list[Word], list[Word]]:
    """Split the words of an overlap at its middle.

    A word across the middle can be on different sides in the two segments; it is kept
    once.

    Args:
        left, right: words of the two segments, with times in the recording.
        middle: seconds from the beginning of the recording.

    Returns:
        The remaining words of each segment.
    """
    left = [w for w in left if w.start + w.end < 2 * middle]
    right = [w for w in right if w.start + w.end >= 2 * middle]
    if left and right:
        one, two = left[-1], right[0]
        if one.end > two.start and _normalise(one.text) == _normalise(two.text):
            right = right[1:]
    return left, right


def merge_texts(
    left: str, right: str, shares: tuple[float, float], language: str
) -> tuple[str, str]:
    """Cut the texts of two overlapping segments so that nothing is repeated.

    The cut follows the longest common run of words (characters in languages without
    spaces) of the end of ``left`` and the beginning of ``right``. Without one, each
    text loses half of the words expected in the overlap.

    Args:
        left, right: texts of the two segments.
        shares: fraction of each segment in the overlap, from 0 to 1.
        language: language code of the texts.

    Returns:
        The remaining text of each segment.
    """
    gap = "" if language in LANGUAGES_WITHOUT_SPACES else " "
    left_words, right_words = (
        text.split() if gap else list(text) for text in (left, right)
    )
    tail, head = (
        min(round(len(words) * share * 1.5) + 2, len(words))
        for words, share in zip((left_words, right_words), shares)
    )
    begin = len(left_words) - tail
    match = SequenceMatcher(
        None,
        [_normalise(w) for w in left_words],
        [_normalise(w) for w in right_words],
        autojunk=False,
    ).find_longest_match(begin, len(left_words), 0, head)
    if match.size:
        left_end, right_start = match.a + match.size, match.b + match.size
    else:
        left_end = len(left_words) - round(len(left_words) * shares[0] / 2)
        right_start = round(len(right_words) * shares[1] / 2)
    return gap.join(left_words[:left_end]), gap.join(right_words[right_start:])


def _normalise(word: str) -> str:
    """Return a word without case and surrounding punctuation, for comparison."""
    return word.strip(".,;:!?…¡¿\"'“”‘’«»()[]、。").casefold()
