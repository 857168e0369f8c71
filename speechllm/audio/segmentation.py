"""Segmentation of long recordings into stretches of speech.

The probabilities of Silero VAD (:mod:`speechllm.audio.vad`) become segments that the
model can take: cut at pauses, and without a pause within reach into windows that
overlap, whose texts :mod:`speechllm.inference.long_form` merges. It works on a stream
of audio, in memory that does not depend on the length of the recording.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from speechllm.audio.io import SAMPLING_RATE
from speechllm.audio.vad import (
    RECENT,
    SECONDS_PER_WINDOW,
    WINDOW,
    speech_probabilities,
)
from speechllm.utils.schema import check_options, number

# Thresholds on the speech probability of a window.
SPEECH = 0.5  # speech begins, as in Silero's code
SILENCE = 0.35  # below: part of a pause, as in Silero's code
CERTAIN = 0.9  # reached by nearly all speech, in noise too, and rarely by music
ANY_SPEECH = 0.1  # a short recording that never reaches it has no speech

MAX_SECONDS = 15.0
PAUSE_SECONDS = 0.1  # as in Silero's code
LEAST_MAX_SECONDS = 1.0  # shorter segments would cut words


@dataclass(frozen=True)
class SpeechSegment:
    """A part of a recording, in seconds from its beginning.

    Attributes:
        continues: it was cut without a pause, so the next one may overlap it.
    """

    start: float
    end: float
    continues: bool = False


@dataclass(frozen=True)
class Cutting:
    """Options of the segmentation, all in seconds.

    Attributes:
        longest: maximum length of a segment.
        pause: minimum length of a pause that always ends a segment.
        margin: kept before and after speech, as far as the pause allows.
        overlap: of two windows of speech without a pause.
        shortest_speech: minimum amount of speech in a segment; less is a click.

    Raises:
        UserError: ``longest`` is below 1 s, ``pause`` is not above 0, or one of them is
            not finite.
    """

    longest: float = MAX_SECONDS
    pause: float = PAUSE_SECONDS
    margin: float = 0.2
    overlap: float = 3.0
    shortest_speech: float = 0.1

    def __post_init__(self):
        options = {"max_seconds": self.longest, "pause_seconds": self.pause}
        rules = {
            "max_seconds": number(LEAST_MAX_SECONDS),
            "pause_seconds": number(above=0),
        }
        check_options(options, rules, "segmentation")


def speech_segments(
    blocks: Iterable[np.ndarray], cutting: Cutting, whole: bool = True
) -> Iterator[tuple[SpeechSegment, np.ndarray]]:
    """Cut a stream of audio into segments of speech.

    Args:
        blocks: float32 samples (samples,) at 16 kHz, of any lengths.
        cutting: options.
        whole: a recording of at most ``cutting.longest`` seconds is one segment, unless
            it has no speech. Without it each segment is yielded when its pause comes.

    Yields:
        Each segment and its samples, in order. A segment that begins before the end
        of the previous one continues speech without a pause.
    """
    cutter = Cutter(cutting)
    held, origin = np.zeros(0, np.float32), 0  # samples, and index of the first one
    highest = 0.0
    waiting: list[tuple[int, int, bool]] = []  # windows, and whether speech continues

    for samples, probabilities in speech_probabilities(blocks):
        held = np.concatenate([held, samples])
        highest = max(highest, float(probabilities[0].max()))
        for probability, recent in probabilities.T.tolist():
            for first, last in [*cutter.push(probability, recent)]:
                waiting.append((first, last, cutter.needed < last))
        if whole and len(held) <= cutting.longest * SAMPLING_RATE:
            continue
        whole = False
        for window in waiting:
            yield _cut_out(held, origin, *window)
        waiting.clear()
        done = cutter.needed * WINDOW - origin
        held, origin = held[done:], origin + done
    if whole:
        if highest >= ANY_SPEECH:
            yield SpeechSegment(0.0, len(held) / SAMPLING_RATE), held
        return
    for window in cutter.close():
        yield _cut_out(held, origin, *window)


class Cutter:
    """Incremental segmentation of speech probabilities into segments of windows.

    Windows are counted from the beginning of the recording; a segment is the pair
    (first window, last window + 1).
    """

    def __init__(self, cutting: Cutting):
        self.longest, self.pause, self.margin, self.overlap, self.shortest_speech = (
            max(int(seconds / SECONDS_PER_WINDOW), 1)
            for seconds in (
                cutting.longest,
                cutting.pause,
                cutting.margin,
                min(cutting.overlap, cutting.longest / 3),
                cutting.shortest_speech,
            )
        )
        self.count = 0  # windows so far
        self.free = 0  # end of the previous segment
        self.start: int | None = None  # of the open segment
        self.first = 0  # its first window of speech
        self.held: list[float] = []  # probabilities from there on
        self.quiet = 0  # number of latest windows in a pause
        self.onset = 0  # number of latest windows with a high ``recent`` probability

    @property
    def needed(self) -> int:
        """First window that a later segment can contain."""
        if self.start is not None:
            return self.start
        return max(self.free, self.count - RECENT - self.margin)

    def push(
        self, probability: float, recent: float = 0.0
    ) -> Iterator[tuple[int, int]]:
        """Add a window; yield the segment that it ends, if any.

        A segment begins at the first window with a high ``probability``, and includes
        the windows right before it with a high ``recent``.

        Args:
            probability, recent: the two outputs of
                :class:`~speechllm.audio.vad.SpeechDetector`.
        """
        self.count += 1
        before = self.onset
        self.onset = before + 1 if recent >= SPEECH else 0
        if self.start is None:
            if probability < SPEECH:
                return
            before = min(before, RECENT, self.count - 1 - self.free)
            self.first = self.count - 1 - before
            self.start = max(self.first - self.margin, self.free)
            self.held, self.quiet = [SILENCE] * before, 0
        self.held.append(probability)
        self.quiet = self.quiet + 1 if probability < SILENCE else 0
        if self.quiet >= self.pause:
            yield from self.close()
        elif self.count - self.start >= self.longest:
            yield from self._cut()

    def close(self) -> Iterator[tuple[int, int]]:
        """End the open segment, if any, after its speech."""
        if self.start is None:
            return
        end = self.count - max(self.quiet - self.margin, 0)
        yield from self._emit(self.start, end)
        self.start = None

    def _cut(self) -> Iterator[tuple[int, int]]:
        """Cut a segment that is too long; its rest stays open."""
        assert self.start is not None
        begin_late = self.start + self.longest // 2
        pauses = self._pauses()
        late = [pause for pause in pauses if pause[0] >= begin_late]
        if not pauses:
            yield from self._emit(self.start, self.count)
            self._reopen(self.count - self.overlap)
            return
        begin, end = max(late or pauses[-1:], key=self._depth)
        if end == self.count:  # the pause is at the end: nothing is left
            yield from self.close()
            return
        middle = (begin + end + 1) // 2
        yield from self._emit(self.start, min(begin + self.margin, middle))
        self._reopen(max(end - self.margin, middle))

    def _pauses(self) -> list[tuple[int, int]]:
        """Return the pauses of the open segment: (first window, last window + 1)."""
        quiet = np.array([False, *(p < SILENCE for p in self.held), False])
        edges = self.first + np.flatnonzero(quiet[1:] != quiet[:-1])
        return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2])]

    def _depth(self, pause: tuple[int, int]) -> float:
        """Return the area of a pause below the threshold: its length and quietness."""
        begin, end = (edge - self.first for edge in pause)
        return sum(SILENCE - p for p in self.held[begin:end])

    def _emit(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the segment without music before and after its speech.

        The detector reaches ``CERTAIN`` late at the beginning of speech, but keeps it
        to the end. A segment that never reaches it (a single letter, say) is kept
        whole.
        """
        held = self.held[: end - self.first]
        spoken = sum(p >= SPEECH for p in held)
        certain = [self.first + n for n, p in enumerate(held) if p >= CERTAIN]
        if spoken >= self.shortest_speech:
            if certain:
                start = max(start, certain[0] - RECENT - self.margin)
                end = min(end, certain[-1] + 1 + self.margin)
            yield start, end
            self.free = end

    def _reopen(self, start: int) -> None:
        del self.held[: start - self.first]
        self.start = self.first = start


def _cut_out(
    held: np.ndarray, origin: int, first: int, last: int, continues: bool = False
) -> tuple[SpeechSegment, np.ndarray]:
    """Return the segment of some windows and a copy of its samples.

    Args:
        held: samples, the first of which has index ``origin`` in the recording.
        first, last: first window, and last window + 1.
        continues: as in :class:`SpeechSegment`.
    """
    samples = held[first * WINDOW - origin : last * WINDOW - origin].copy()
    start = first * WINDOW / SAMPLING_RATE
    end = start + len(samples) / SAMPLING_RATE
    return SpeechSegment(start, end, continues), samples


def has_speech(wave: np.ndarray) -> bool:
    """Return whether the VAD is sure of speech anywhere in a recording.

    Args:
        wave: (samples,) at 16 kHz.
    """
    return any(
        (probabilities[0] > SPEECH).any()  # with all earlier windows as context
        for _, probabilities in speech_probabilities([wave])
    )
