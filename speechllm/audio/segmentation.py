"""Where there is speech, and where a long recording may be cut.

Silero VAD (Silero Team 2024, https://github.com/snakers4/silero-vad) gives the
probability of speech in every window of 32 ms. Stretches of speech become segments
that a model can take: cut at pauses, and where there is no pause within reach, into
windows that overlap, whose texts :mod:`speechllm.inference.long_form` merges. All of it runs on a
stream of audio, in memory that does not depend on the recording's length.
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
from speechllm.utils.errors import UserError

SPEECH = 0.5  # from this probability on a window begins speech, as in Silero's code
SILENCE = 0.35  # below it a window belongs to a pause, as in Silero's code
SURE = 0.9  # nearly all speech reaches it, in noise as loud too; music seldom
HEARD = 0.1  # a short recording that never reaches it has no speech: digital silence
MAX_SECONDS = 15.0
PAUSE_SECONDS = 0.1  # as in Silero's code
LEAST_MAX_SECONDS = 1.0  # shorter segments would cut words


@dataclass(frozen=True)
class Segment:
    """A part of a recording, in seconds from its beginning."""

    start: float
    end: float


@dataclass(frozen=True)
class Cutting:
    """How speech is cut into segments; all in seconds.

    Attributes:
        longest: no segment is longer.
        pause: one this long always ends a segment.
        margin: kept before and after speech, where the pause has room for it.
        overlap: of two windows, where speech goes on without a pause.
        shortest_speech: less than this is taken for a click.
    """

    longest: float = MAX_SECONDS
    pause: float = PAUSE_SECONDS
    margin: float = 0.2
    overlap: float = 3.0
    shortest_speech: float = 0.1

    def __post_init__(self):
        if not self.longest >= LEAST_MAX_SECONDS:  # also when it is NaN
            raise UserError(
                f"max_seconds {self.longest:g}: at least {LEAST_MAX_SECONDS:g}"
            )
        if not self.pause > 0:
            raise UserError(f"pause_seconds {self.pause:g}: more than 0")


class Cutter:
    """Turns probabilities, as they come, into segments of windows.

    ``needed`` is the first window that a segment to come can hold.
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
        self.count = 0  # windows seen
        self.free = 0  # where the segment before ended
        self.start: int | None = None  # of the open segment
        self.first = 0  # its first window of speech
        self.held: list[float] = []  # probabilities from there on
        self.quiet = 0  # how many of the last ones belong to a pause
        self.onset = 0  # how many of the last ones have a high second probability

    @property
    def needed(self) -> int:
        if self.start is not None:
            return self.start
        return max(self.free, self.count - RECENT - self.margin)

    def push(
        self, probability: float, recent: float = 0.0
    ) -> Iterator[tuple[int, int]]:
        """Take one more window; yield the segment (first, last + 1) that it ends.

        A segment begins where the first probability is high; from there back it takes
        in the windows right before that have a high second one.

        Args:
            probability, recent: the two of :class:`SpeechDetector`.
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
            yield from self.cut()

    def close(self) -> Iterator[tuple[int, int]]:
        """End the open segment, if there is one, where its speech ends."""
        if self.start is None:
            return
        end = self.count - max(self.quiet - self.margin, 0)
        yield from self.emit(end)
        self.start = None

    def cut(self) -> Iterator[tuple[int, int]]:
        """End a segment that has grown too long; what is left of it stays open."""
        pauses = self.pauses()
        late = [p for p in pauses if p[0] - self.start >= self.longest // 2]
        if not pauses:
            yield from self.emit(self.count)
            self.reopen(self.count - self.overlap)
            return
        begin, end = max(late or pauses[-1:], key=self.depth)
        if end == self.count:  # nothing is left
            yield from self.close()
            return
        middle = (begin + end + 1) // 2
        yield from self.emit(min(begin + self.margin, middle))
        self.reopen(max(end - self.margin, middle))

    def pauses(self) -> list[tuple[int, int]]:
        """The pauses of the open segment, (first, last + 1) window of each."""
        quiet = np.array([False, *(p < SILENCE for p in self.held), False])
        edges = self.first + np.flatnonzero(quiet[1:] != quiet[:-1])
        return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2])]

    def depth(self, pause: tuple[int, int]) -> float:
        """How long and how quiet a pause is: its area below the threshold."""
        begin, end = (edge - self.first for edge in pause)
        return sum(SILENCE - p for p in self.held[begin:end])

    def emit(self, end: int) -> Iterator[tuple[int, int]]:
        """Give the segment, with music before and behind the speech left out.

        Of what the detector is sure of, it is slow to believe in the beginning, but
        not in the end. Where it is sure of nothing, such as a letter, all is kept.
        """
        held = self.held[: end - self.first]
        spoken = sum(p >= SPEECH for p in held)
        sure = [self.first + n for n, p in enumerate(held) if p >= SURE]
        if spoken >= self.shortest_speech:
            start = self.start
            if sure:
                start = max(start, sure[0] - RECENT - self.margin)
                end = min(end, sure[-1] + 1 + self.margin)
            yield start, end
            self.free = end

    def reopen(self, start: int) -> None:
        del self.held[: start - self.first]
        self.start = self.first = start


def speech_segments(
    blocks: Iterable[np.ndarray], cutting: Cutting
) -> Iterator[tuple[Segment, np.ndarray]]:
    """Cut a stream of audio into the segments that hold speech.

    A recording that is short enough is one segment, whole, if any speech is heard.

    Args:
        blocks: float32 samples (samples,) at 16 kHz, of any lengths.
        cutting: how to cut.

    Yields:
        Each segment and its samples, in order. A segment that begins before the one
        before it ends continues speech without a pause.
    """
    cutter = Cutter(cutting)
    held, origin = np.zeros(0, np.float32), 0  # samples, and where they begin
    whole, heard = True, 0.0
    waiting: list[tuple[int, int]] = []

    for samples, probabilities in speech_probabilities(blocks):
        held = np.concatenate([held, samples])
        heard = max(heard, float(probabilities[0].max()))
        for probability, recent in probabilities.T.tolist():
            waiting.extend(cutter.push(probability, recent))
        if whole and len(held) <= cutting.longest * SAMPLING_RATE:
            continue
        whole = False
        for window in waiting:
            yield cut_out(held, origin, window)
        waiting.clear()
        gone = cutter.needed * WINDOW - origin
        held, origin = held[gone:], origin + gone
    if whole:
        if heard >= HEARD:
            yield Segment(0.0, len(held) / SAMPLING_RATE), held
        return
    for window in cutter.close():
        yield cut_out(held, origin, window)


def cut_out(
    held: np.ndarray, origin: int, windows: tuple[int, int]
) -> tuple[Segment, np.ndarray]:
    """The segment of windows (first, last + 1) and a copy of its samples.

    Args:
        held: samples, of which the first is number ``origin`` of the recording.
    """
    first, last = (window * WINDOW for window in windows)
    samples = held[first - origin : last - origin].copy()
    start = first / SAMPLING_RATE
    return Segment(start, start + len(samples) / SAMPLING_RATE), samples
