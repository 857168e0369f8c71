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
from speechllm.decoding.result import Result
from speechllm.inference.joining import join
from speechllm.text.tasks import Task
from speechllm.utils.errors import UserError, describe_error, is_out_of_memory
from speechllm.utils.free_memory import return_free_memory

if TYPE_CHECKING:
    from speechllm.inference.speech_to_text import SpeechToText


DETECTION_SECONDS = 30.0  # of speech, to detect its language
MAX_MERGE_GAP = 0.1  # seconds between two segments that may be merged, without margins
#: Batches read ahead to batch segments of similar length, on a CPU (True) or elsewhere.
#: A CPU takes seconds for each batch, and results are complete only afterwards.
_BATCHES_AHEAD = {True: 4, False: 8}


@dataclass(frozen=True)
class Transcription:
    """Result or error of a recording.

    Attributes:
        seconds: length of the audio that could be read.
        result: its text, with ``passages``; None if it failed completely.
        error: message for the user, or None. With a result, the reason why the text
            is incomplete: the recording is truncated, or decoding a segment failed.
        language: of the speech.
        language_probability: of a detected language.
    """

    seconds: float
    result: Result | None
    error: str | None = None
    language: str | None = None
    language_probability: float | None = None


def transcribe_long(
    model: SpeechToText,
    streams: Iterable[Iterable[np.ndarray]],
    task: str = "asr",
    language: str | None = None,
    target_language: str | None = None,
    max_seconds: float = MAX_SECONDS,
    pause_seconds: float = PAUSE_SECONDS,
    batch_size: int | None = None,
    progress: Callable[[float], object] | None = None,
    debug: bool = False,
    detect: Callable[[np.ndarray], tuple[str, float]] | None = None,
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
            None: that of the model's settings, else 8.
        progress: called with the seconds of audio completed since the last call.
        debug: raise unexpected errors of a recording, which are bugs, with their
            traceback.
        detect: function that returns the language of speech (samples,) and its
            probability, in place of ``language``; it is called with the first
            half minute of speech of each recording.
        **options: ``word_times`` and others of :meth:`SpeechToText.transcribe`.

    Yields:
        One transcription for each recording, in order, as soon as it is complete. A
        recording without speech has an empty text and the flag ``"no speech"``.

    Raises:
        UserError: an unknown task, language or option, or ``max_seconds`` is too
            short. Errors of a single recording, of any class, are in its
            transcription instead. Full memory of a GPU is always raised.
    """
    batch_size = model.choose_batch_size(batch_size, "transcribe_long")
    requested = model.request(task, language, target_language)
    cutting = cutting_for(model, max_seconds, pause_seconds)
    model.options(options)
    request = {"batch_size": batch_size, **options}
    caught = UserError if debug else Exception
    ahead = batch_size * _BATCHES_AHEAD[model.device.type == "cpu"]
    opened: deque[RecordingState] = deque()
    pending: list[Piece] = []

    def decode() -> None:
        decode_pieces(model, pending, request, caught)
        pending.clear()
        return_free_memory()
        for recording in opened:
            recording.report(progress)

    for stream in streams:
        known = requested.source if detect is None else None
        recording = RecordingState(caught, requested, known)
        opened.append(recording)
        pieces = recording.cut(stream, cutting)
        if detect is not None:
            pieces = recording.detect_language(pieces, detect, model)
        for piece in pieces:
            pending.append(piece)
            if len(pending) >= ahead:
                decode()
        recording.ended = True
        while opened and opened[0].done:
            opened[0].report(progress)
            yield opened.popleft().transcription()
    decode()
    for recording in opened:
        yield recording.transcription()


def cutting_for(
    model: SpeechToText,
    max_seconds: float = MAX_SECONDS,
    pause_seconds: float = PAUSE_SECONDS,
) -> Cutting:
    """Return the options of the segmentation, within the limit of the encoder."""
    if model.max_samples is not None:
        max_seconds = min(max_seconds, model.max_samples / SAMPLING_RATE)
    return Cutting(max_seconds, pause_seconds)


@dataclass
class Piece:
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
    merged: Piece | None = None
    task: Task | None = None

    @property
    def pending(self) -> bool:
        return self.samples is not None or (
            self.merged is not None and self.merged.pending
        )


@dataclass
class RecordingState:
    """State of a recording that is being transcribed.

    Attributes:
        caught: class of the errors that are stored in ``error``.
        task: of its segments.
        language: of the speech; None if it is not detected yet.
        language_probability: of a detected language.
    """

    caught: type[Exception]
    task: Task
    language: str | None
    language_probability: float | None = None
    pieces: list[Piece] = field(default_factory=list)
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

    def cut(self, stream: Iterable[np.ndarray], cutting: Cutting) -> Iterator[Piece]:
        """Yield the pieces to decode; store an error of the stream in ``error``."""
        try:
            yield from self._cut(stream, cutting)
        except self.caught as error:
            self.error = self.error or describe_error(error)

    def _cut(self, stream: Iterable[np.ndarray], cutting: Cutting) -> Iterator[Piece]:
        previous: tuple[SpeechSegment, np.ndarray] | None = None
        for segment, samples in speech_segments(self.read(stream), cutting):
            piece = Piece(segment, samples, task=self.task)
            self.pieces.append(piece)
            yield piece
            if previous is not None:
                piece.merged = merge_with_previous(
                    *previous, segment, samples, cutting.longest, self.task
                )
            if piece.merged is not None:
                yield piece.merged
            previous = segment, samples

    def detect_language(
        self,
        pieces: Iterator[Piece],
        detect: Callable[[np.ndarray], tuple[str, float]],
        model: SpeechToText,
    ) -> Iterator[Piece]:
        """Yield pieces with the language that is detected in the first of them."""
        held: list[Piece] = []
        speech: list[np.ndarray] = []  # of segments, without merged ones

        def release() -> list[Piece]:
            found, self.language_probability = detect(np.concatenate(speech))
            target = None if self.task.name == "asr" else self.task.target
            self.language = found
            self.task = model.request(self.task.name, found, target)
            for piece in held:
                piece.task = self.task
                if piece.merged is not None:
                    piece.merged.task = self.task
            return held

        try:
            for piece in pieces:
                if self.language_probability is not None:
                    yield piece
                    continue
                held.append(piece)
                if any(piece is single for single in self.pieces):
                    assert piece.samples is not None
                    speech.append(piece.samples)
                if sum(map(len, speech)) >= DETECTION_SECONDS * SAMPLING_RATE:
                    yield from release()
            if held and self.language_probability is None:
                yield from release()
        except self.caught as error:
            self.error = self.error or describe_error(error)
            for piece in self.pieces:
                if piece.result is None and self.language_probability is None:
                    piece.samples = piece.merged = None

    def read(self, stream: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        try:
            if isinstance(stream, (str, bytes)):  # would be read letter by letter
                raise UserError(
                    f"{stream!r} is not a stream of samples: use stream_audio(path)"
                )
            for block in stream:
                self.samples += len(block)
                yield block
        except self.caught as error:
            self.error = describe_error(error)

    def report(self, progress: Callable[[float], object] | None) -> None:
        if progress is not None:
            progress(self.seconds - self.reported)
        self.reported = self.seconds

    def transcription(self) -> Transcription:
        known = (self.language, self.language_probability)
        problem = self.error or next((p.error for p in self.pieces if p.error), None)
        if problem is not None and all(p.result is None for p in self.pieces):
            return Transcription(self.seconds, None, problem)
        try:
            result = self.join(self.pieces)
        except self.caught as error:
            return Transcription(self.seconds, None, describe_error(error))
        return Transcription(self.seconds, result, problem, *known)

    def join(self, pieces: Sequence[Piece]) -> Result:
        """Join the results of consecutive pieces."""
        decoded = [
            (piece.segment, piece.result)
            for piece in choose_most_probable(pieces)
            if piece.result is not None
        ]
        return join(decoded, self.task.source, self.task.target)

    def count_final(self) -> int:
        """Return the number of pieces, from the first, whose text is final.

        The text of a piece can change as long as it, or the next one, which may be
        merged with it or overlap it, is pending.
        """
        final = 0
        for number, (piece, following) in enumerate(pairwise([*self.pieces, None]), 1):
            if piece.pending:
                break
            if following is None:
                return number if self.ended else final
            if following.segment.start - piece.segment.end > MAX_MERGE_GAP:
                final = number
        return final


def merge_with_previous(
    left: SpeechSegment,
    left_samples: np.ndarray,
    right: SpeechSegment,
    right_samples: np.ndarray,
    longest: float,
    task: Task | None = None,
) -> Piece | None:
    """Merge adjacent segments, with silence in the gap between them.

    Args:
        left_samples, right_samples: ``(samples,)`` at 16 kHz.
        longest: maximum length of the merged segment in seconds.
        task: of the segments.

    Returns:
        The merged piece; None if they overlap, or the gap or the result is too long.
    """
    gap = right.start - left.end
    if not 0 <= gap <= MAX_MERGE_GAP or right.end - left.start > longest:
        return None
    silence = np.zeros(round(gap * SAMPLING_RATE), np.float32)
    samples = np.concatenate([left_samples, silence, right_samples])
    return Piece(replace(right, start=left.start), samples, task=task)


def choose_most_probable(pieces: Sequence[Piece]) -> list[Piece]:
    """Choose between single and merged segments so that the total score is highest.

    Segments flagged by the guard are not merged: their scores are not comparable.

    Args:
        pieces: segments of a recording in order, decoded.

    Returns:
        The chosen pieces in order, which cover all segments once.
    """

    def score(piece: Piece | None) -> float | None:
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
    chosen: list[Piece] = []
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


def decode_pieces(
    model: SpeechToText,
    pieces: Sequence[Piece],
    request: dict,
    caught: type[Exception] = UserError,
) -> None:
    """Decode segments together, or one by one if that raises an error.

    Args:
        request: batch size and options of :meth:`SpeechToText.transcribe`.
        caught: class of the errors that are stored in the piece.
    """
    if not pieces:
        return
    if len(tasks := dict.fromkeys(piece.task for piece in pieces)) > 1:
        for task in tasks:
            part = [piece for piece in pieces if piece.task == task]
            decode_pieces(model, part, request, caught)
        return
    task = pieces[0].task
    assert task is not None, "a piece of a recording has its task"
    try:
        results = model.transcribe(
            [piece.samples for piece in pieces],
            task=task.name,
            language=task.source,
            target_language=task.target,
            unguarded=False,
            **request,
        )
    except caught as error:
        if is_out_of_memory(error):
            raise
        if len(pieces) > 1:
            for piece in pieces:
                decode_pieces(model, [piece], request, caught)
        else:
            pieces[0].error, pieces[0].samples = describe_error(error), None
        return
    for piece, result in zip(pieces, results, strict=True):
        piece.result, piece.samples = result, None
