"""Recordings of any length → text with times.

    from speechllm import SpeechToText
    from speechllm.audio import stream_audio
    from speechllm.long_form import transcribe_long

    model = SpeechToText.from_pretrained("exp/speechllm_train/model")
    streams = [stream_audio("lecture.mp3"), stream_audio("talk.mp4")]
    for transcription in transcribe_long(model, streams, language="en"):
        for passage in transcription.result.passages:
            print(passage.start, passage.end, passage.text)

Audio is read as a stream, cut at pauses (:mod:`speechllm.audio.segmentation`), and the
segments of all recordings are decoded together in batches of like lengths. A pause
within a sentence may have cut it: neighbours that are close are decoded as one segment
too, and the likelier reading is taken. What is held at a time does not grow with the
length or the number of recordings, but for their texts.
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
    speech_segments,
)
from speechllm.audio.segmentation import Segment as SpeechSegment
from speechllm.decoding.result import Result, Segment, Word
from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES
from speechllm.utils.errors import UserError

if TYPE_CHECKING:
    from speechllm.inference.speech_to_text import SpeechToText


NO_SPEECH = "no speech"  # flag of a recording
CLOSE = 0.1  # seconds between two segments that may be one; their margins lie outside
_BATCHES_AT_ONCE = 8  # read ahead, to put segments of like length together


@dataclass(frozen=True)
class Transcription:
    """What became of a recording.

    Attributes:
        seconds: how much of it could be read.
        result: its text, with ``passages``; None where nothing could be made of it.
        error: what went wrong, in words for the user. Beside a result it says why
            that is not all: the recording is cut off, or a segment was refused.
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
        model: as :meth:`SpeechToText.from_pretrained` gives it.
        streams: one iterable of float32 blocks (samples,) at 16 kHz for each
            recording, such as :func:`speechllm.audio.io.stream_audio`.
        task, language, target_language: as in :meth:`SpeechToText.transcribe`.
        max_seconds: recordings up to this length are decoded whole, longer ones in
            segments of at most this; never more than the encoder takes.
        pause_seconds: where nobody speaks for so long, a segment ends.
        batch_size: segments decoded at once; it does not change their text.
        progress: called with the seconds of audio done since the last call.
        **options: ``word_times`` and others of :meth:`SpeechToText.transcribe`.

    Yields:
        One for each recording, in order, as soon as it is done. A recording without
        speech has an empty text and the flag ``"no speech"``.

    Raises:
        UserError: an unknown task, language or option, or a ``max_seconds`` that is
            too short. What is wrong with one recording stands in its transcription.
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
    waiting: list[_Piece] = []

    def decode() -> None:
        decode_pieces(model, waiting, request)
        waiting.clear()
        for recording in opened:
            recording.report(progress)

    for stream in streams:
        recording = _Recording()
        opened.append(recording)
        for piece in recording.cut(stream, cutting):
            waiting.append(piece)
            if len(waiting) >= batch_size * _BATCHES_AT_ONCE:
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
    """A segment, its samples until it is decoded, and then its result.

    ``both`` is the same of this segment and the one before as one.
    """

    segment: SpeechSegment
    samples: np.ndarray | None
    result: Result | None = None
    error: str | None = None
    both: _Piece | None = None

    @property
    def waits(self) -> bool:
        return self.samples is not None or (self.both is not None and self.both.waits)


@dataclass
class _Recording:
    """What is known of a recording so far."""

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
        return self.ended and not any(piece.waits for piece in self.pieces)

    def cut(self, stream: Iterable[np.ndarray], cutting: Cutting) -> Iterator[_Piece]:
        """Cut the stream; what is wrong with it comes to stand in ``error``."""
        before: tuple[SpeechSegment, np.ndarray] | None = None
        for segment, samples in speech_segments(self.read(stream), cutting):
            piece = _Piece(segment, samples)
            self.pieces.append(piece)
            yield piece
            if before is not None:
                piece.both = as_one(*before, segment, samples, cutting.longest)
            if piece.both is not None:
                yield piece.both
            before = segment, samples

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
        good = [
            (p.segment, p.result)
            for p in likeliest(self.pieces)
            if p.result is not None
        ]
        if problem is not None and not good:
            return Transcription(self.seconds, None, problem)
        return Transcription(self.seconds, join(good, source, target), problem)


def as_one(
    left: SpeechSegment,
    left_samples: np.ndarray,
    right: SpeechSegment,
    right_samples: np.ndarray,
    longest: float,
) -> _Piece | None:
    """Neighbours as one segment, with silence between them, if they are close."""
    gap = right.start - left.end
    if not 0 <= gap <= CLOSE or right.end - left.start > longest:
        return None
    silence = np.zeros(round(gap * SAMPLING_RATE), np.float32)
    samples = np.concatenate([left_samples, silence, right_samples])
    return _Piece(SpeechSegment(left.start, right.end), samples)


def likeliest(pieces: Sequence[_Piece]) -> list[_Piece]:
    """Take neighbours as one where the score of that is higher than theirs together.

    What the guard found fault with is left as it is: its scores are of another kind.
    """

    def score(piece: _Piece | None) -> float | None:
        if piece is None or piece.result is None or piece.result.flags:
            return None
        return piece.result.score

    best, as_ones = [0.0], []  # scores of the first n pieces; how the nth was taken
    for number, piece in enumerate(pieces):
        alone = best[-1] + (score(piece) or 0.0)
        parts = [score(pieces[number - 1]) if number else None, score(piece)]
        whole = score(piece.both)
        together = None
        if whole is not None and None not in parts:
            together = best[-2] + whole
        as_ones.append(together is not None and together > alone)
        best.append(together if as_ones[-1] else alone)
    chosen, number = [], len(pieces) - 1
    while number >= 0:
        chosen.append(pieces[number].both if as_ones[number] else pieces[number])
        number -= 2 if as_ones[number] else 1
    return chosen[::-1]


def decode_pieces(model: SpeechToText, pieces: Sequence[_Piece], request: dict) -> None:
    """Decode segments together; where the model refuses, one by one."""
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
    """Make one result of those of a recording's segments.

    Texts of segments that overlap are merged: by the times of their words where
    there are, else at the longest run of words that both have.

    Args:
        pieces: segments in order, and what was made of each alone.
        source, target: languages of what is spoken and of the text.
    """
    if not pieces:
        return Result("", [], 0.0, flags=[NO_SPEECH], passages=[])
    parts = [shift(result, segment) for segment, result in pieces]
    merge_overlaps(parts, source, target)
    results = [part.result for part in parts]
    passages = [
        Segment(part.start, part.end, part.result.text)
        for part in parts
        if part.result.text.strip()
    ]
    if len(parts) == 1:
        return replace(results[0], passages=passages)

    def joined(texts: list[str | None], language: str) -> str | None:
        if all(text is None for text in texts):
            return None
        gap = "" if language in LANGUAGES_WITHOUT_SPACES else " "
        return gap.join(" ".join(text.split()) for text in texts if text)

    text = joined([r.text for r in results], target)
    score = sum(r.score for r in results)
    unguarded = None
    if any(r.unguarded is not None for r in results):
        before = [r.text if r.unguarded is None else r.unguarded for r in results]
        unguarded = joined(before, target)
    words = None
    if any(r.words is not None for r in results):
        words = [word for r in results for word in r.words or ()]
    sure = [(r.confidence, len(r.text)) for r in results if r.confidence is not None]
    letters = sum(length for _, length in sure)
    return Result(
        text=text,
        tokens=[token for r in results for token in r.tokens],
        score=score,
        ctc_text=joined([r.ctc_text for r in results], source),
        nbest=[(text, score)],
        transcript=joined([r.transcript for r in results], source),
        flags=sorted({flag for r in results for flag in r.flags}),
        unguarded=unguarded,
        words=words,
        confidence=sum(c * n for c, n in sure) / letters if letters else None,
        passages=passages,
    )


@dataclass
class _Part:
    """A segment's result, with times of the recording; ``merge_overlaps`` cuts it."""

    start: float
    end: float
    result: Result


def shift(result: Result, segment: SpeechSegment) -> _Part:
    """Count a result's times from the beginning of the recording."""
    if result.words is not None:
        words = [
            replace(w, start=w.start + segment.start, end=w.end + segment.start)
            for w in result.words
        ]
        result = replace(result, words=words)
    return _Part(segment.start, segment.end, result)


def merge_overlaps(parts: Sequence[_Part], source: str, target: str) -> None:
    """Take out of neighbours that overlap what both of them say."""
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
    """Share the words of an overlap out at the time of its middle.

    A word that lies across it, and was put on this side by one and on that side by
    the other, is taken once.
    """
    left = [w for w in left if w.start + w.end < 2 * middle]
    right = [w for w in right if w.start + w.end >= 2 * middle]
    if left and right:
        one, two = left[-1], right[0]
        if one.end > two.start and _plain(one.text) == _plain(two.text):
            right = right[1:]
    return left, right


def merge_texts(
    left: str, right: str, shares: tuple[float, float], language: str
) -> tuple[str, str]:
    """Cut two texts where the second takes over from the first.

    That is behind the longest run of words (of characters, in languages without
    spaces) that the end of the one and the beginning of the other have in common. If
    there is none, each loses half of what the overlap should hold.

    Args:
        left, right: texts of two segments that overlap.
        shares: the part of each segment that is overlap, from 0 to 1.

    Returns:
        What is left of each.
    """
    gap = "" if language in LANGUAGES_WITHOUT_SPACES else " "
    ours, theirs = (text.split() if gap else list(text) for text in (left, right))
    tail, head = (
        min(round(len(words) * share * 1.5) + 2, len(words))
        for words, share in zip((ours, theirs), shares)
    )
    begin = len(ours) - tail
    match = SequenceMatcher(
        None, [_plain(w) for w in ours], [_plain(w) for w in theirs], autojunk=False
    ).find_longest_match(begin, len(ours), 0, head)
    if match.size:
        kept, taken = match.a + match.size, match.b + match.size
    else:
        kept = len(ours) - round(len(ours) * shares[0] / 2)
        taken = round(len(theirs) * shares[1] / 2)
    return gap.join(ours[:kept]), gap.join(theirs[taken:])


def _plain(word: str) -> str:
    """A word as it is compared: without case and punctuation around it."""
    return word.strip(".,;:!?…¡¿\"'“”‘’«»()[]、。").casefold()
