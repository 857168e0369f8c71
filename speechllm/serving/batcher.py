"""Batches of the segments of all requests, decoded in one thread that owns the model.

Each request reads and cuts its recording in a thread of its own and waits for its
segments. The decoding thread takes the next segment of each request in turn until the
batch is full, so that a long recording does not delay the short ones. Requests with
other hotwords are in other batches.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from speechllm.audio.segmentation import Cutting
from speechllm.decoding.options import SearchOptions
from speechllm.decoding.vllm_engine import VLLMLanguageModel
from speechllm.inference.joining import join_texts
from speechllm.inference.long_form import Piece, RecordingState, Transcription
from speechllm.text.tasks import Task
from speechllm.utils.errors import UserError
from speechllm.utils.free_memory import return_free_memory

if TYPE_CHECKING:
    from speechllm.inference.language_detection import LanguageDetector
    from speechllm.inference.speech_to_text import SpeechToText

#: After which free memory is returned, as when no segment waits; it takes 50 ms.
_BATCHES_BETWEEN_RETURNS = 8


class Cancelled(Exception):
    """The request was cancelled."""


@dataclass(eq=False)
class Job:
    """A recording of a request.

    Attributes:
        recording: its state.
        tasks: by language of the speech, of which a detected one has its own.
        languages: that the speech may have; none: any.
        options: of the search.
        on_text: called in the decoding thread with each part of the text that is final.
        waiting: segments to decode.
        unfinished: number of segments that wait or are being decoded.
        error: of decoding, or of its cancellation.
        text: the parts of the text so far, and the number of their segments.
    """

    recording: RecordingState
    tasks: Mapping[str, Task]
    languages: Sequence[str]
    options: SearchOptions
    on_text: Callable[[str], object] | None = None
    waiting: deque[Piece] = field(default_factory=deque)
    unfinished: int = 0
    error: Exception | None = None
    text: str = ""
    reported: int = 0

    def report_text(self) -> None:
        """Pass on the text that has become final."""
        if self.on_text is None or self.error is not None:
            return
        final = self.recording.count_final()
        new = self.recording.pieces[self.reported : final]
        self.reported = final
        texts = [self.text, self.recording.join(new).text]
        joined = join_texts(texts, self.recording.task.target) or ""
        if joined != self.text:
            self.on_text(joined[len(self.text) :])
        self.text = joined


class Batcher:
    """Queue of segments and the thread that decodes them."""

    def __init__(
        self,
        model: SpeechToText,
        options: SearchOptions,
        cutting: Cutting,
        batch_size: int,
        detect: LanguageDetector | None = None,
        on_batch: Callable[[int], object] = lambda size: None,
    ):
        """Start the thread.

        Args:
            options: of the search, but for the hotwords of a request.
            cutting: options of the segmentation.
            batch_size: segments decoded together.
            detect: for jobs whose language is not known.
            on_batch: called with the number of segments of each batch.
        """
        self.model, self.options, self.cutting = model, options, cutting
        self.batch_size, self.detect, self.on_batch = batch_size, detect, on_batch
        self.turns: deque[Job] = deque()  # with waiting segments, the next one first
        self.changed = threading.Condition()
        self.closed = False
        self.thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self.thread.start()

    def job(
        self,
        tasks: Mapping[str, Task],
        languages: Sequence[str],
        on_text: Callable[[str], object] | None = None,
        hotwords: Sequence[str] = (),
    ) -> Job:
        """Return a job for :meth:`transcribe`.

        Args:
            tasks: of the recording, by language of the speech.
            languages: one that it has, or some of which to detect it; none: any.
            on_text: see :class:`Job`.
            hotwords: of the recording, in addition to those of all requests.
        """
        known = self.options.hotwords
        words = tuple(dict.fromkeys([*known, *hotwords]))
        options = replace(self.options, hotwords=words)
        language = languages[0] if len(languages) == 1 else None
        task = tasks[language] if language else next(iter(tasks.values()))
        recording = RecordingState(UserError, task, language)
        return Job(recording, tasks, languages, options, on_text)

    def transcribe(self, job: Job, stream: Iterable[np.ndarray]) -> Transcription:
        """Cut a recording, and wait until its segments are decoded.

        Args:
            job: from :meth:`job`; another thread may :meth:`cancel` it.
            stream: blocks of float32 samples (samples,) at 16 kHz.

        Raises:
            UserError: the recording cannot be read, or not as a whole.
            Cancelled: by :meth:`cancel`.
            Exception: of decoding, which is a bug or full memory.
        """
        recording = job.recording
        pieces = recording.cut(stream, self.cutting)
        if recording.language is None and self.detect is not None:
            detect = partial(self._detect, self.detect, job)
            pieces = recording.detect_language(pieces, detect, self.model)
        for piece in pieces:
            self._add(job, piece)
        recording.ended = True
        if recording.error is not None:
            self.cancel(job, UserError(recording.error))
        with self.changed:
            self.changed.wait_for(lambda: job.error or not job.unfinished)
        if job.error is not None:
            raise job.error
        return recording.transcription()

    def cancel(self, job: Job, error: Exception | None = None) -> None:
        """Drop a job's segments; :meth:`transcribe` raises the error."""
        with self.changed:
            job.error = job.error or error or Cancelled()
            job.waiting.clear()
            if job in self.turns:
                self.turns.remove(job)
            self.changed.notify_all()

    def close(self) -> None:
        """End the thread when no segment waits any more."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.thread.join()

    @property
    def takes_hotwords(self) -> bool:
        """True if jobs can have hotwords."""
        llm, options = self.model.llm, self.options
        if isinstance(llm, VLLMLanguageModel) and options.hotword_bonus:
            return False
        return llm is not None and not options.sampling

    @property
    def waiting(self) -> int:
        """Number of segments that wait."""
        return sum(len(job.waiting) for job in list(self.turns))

    def _detect(
        self, detect: LanguageDetector, job: Job, samples: np.ndarray
    ) -> tuple[str, float]:
        """Return the language of speech and its probability; give the job its task.

        Raises:
            UserError: there is no task for it.
        """
        if job.languages:
            detect = copy(detect)  # with the same weights
            detect.languages = list(job.languages)
        found, probability = detect(samples)
        if found not in job.tasks:
            raise UserError(
                f"language: {found} was detected; the model has this task for "
                f"{', '.join(job.tasks)}"
            )
        job.recording.task = job.tasks[found]
        return found, probability

    def _add(self, job: Job, piece: Piece) -> None:
        """Add a segment when there is room; each job may have one in any case."""
        with self.changed:
            self.changed.wait_for(
                lambda: (
                    job.error or not job.waiting or self.waiting < 2 * self.batch_size
                )
            )
            if job.error is not None:
                raise job.error
            job.waiting.append(piece)
            job.unfinished += 1
            if job not in self.turns:
                self.turns.append(job)
            self.changed.notify_all()

    def _run(self) -> None:
        for number in count(1):
            with self.changed:
                self.changed.wait_for(lambda: self.turns or self.closed)
                if not self.turns:
                    return
                batch = self._take()
                self.changed.notify_all()
            self.on_batch(len(batch))
            self._decode(batch)
            for job in {job for job, _ in batch}:
                self._report(job)
            with self.changed:
                for job, _ in batch:
                    job.unfinished -= 1
                self.changed.notify_all()
            if not self.turns or number % _BATCHES_BETWEEN_RETURNS == 0:
                return_free_memory()

    def _take(self) -> list[tuple[Job, Piece]]:
        """Remove the next segments from the queue, one of each job in turn.

        They have the options of the first one; jobs with others come first next time.
        """
        batch: list[tuple[Job, Piece]] = []
        options, others = self.turns[0].options, []
        while self.turns and len(batch) < self.batch_size:
            job = self.turns.popleft()
            if job.options != options:
                others.append(job)
                continue
            batch.append((job, job.waiting.popleft()))
            if job.waiting:
                self.turns.append(job)
        self.turns.extendleft(reversed(others))
        return batch

    def _decode(self, batch: list[tuple[Job, Piece]]) -> None:
        """Decode segments together, or one by one if that raises an error."""
        pieces = [piece for _, piece in batch]
        try:
            results = self.model.decode_all(
                [piece.samples for piece in pieces],
                [piece.task for piece in pieces],
                batch[0][0].options,
                self.batch_size,
                unguarded=False,
            )
        except Exception as error:
            if len(batch) == 1:
                self.cancel(batch[0][0], error)
            else:
                for item in batch:
                    self._decode([item])
            return
        for piece, result in zip(pieces, results, strict=True):
            piece.result, piece.samples = result, None

    def _report(self, job: Job) -> None:
        try:
            job.report_text()
        except Exception as error:  # nothing may end the thread
            self.cancel(job, error)
