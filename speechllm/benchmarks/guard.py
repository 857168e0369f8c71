"""Benchmark of the guard against hallucination: texts with and without it.

Conditions without speech to write are silence, noise, music, a language that the model
was not trained on, and clips too short for a word. Conditions with true speech, which
must be kept, are clipped audio, one word repeated thirty times, and the clean test set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speechllm.audio.io import SAMPLING_RATE, load_audio
from speechllm.data.examples import Example, read_examples
from speechllm.inference.guard_thresholds import Thresholds
from speechllm.inference.tuning import count_errors
from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES, ctc_text, normalize
from speechllm.utils.errors import UserError

if TYPE_CHECKING:
    from speechllm.decoding.result import Result
    from speechllm.inference.speech_to_text import SpeechToText


PIECE_SECONDS = 10.0  # length of a piece of noise or music
NOISE_LEVELS = (-60, -40, -20, -6)  # root mean square in dB relative to full scale
REPETITIONS, LONGEST_SECONDS = 30, 29.0
CLIP_SECONDS, CLIP_GAIN = 0.05, 30.0


@dataclass(frozen=True)
class Condition:
    """Utterances of one kind.

    Attributes:
        name: name in the table.
        examples: utterances, with an empty reference if there is no speech to write.
        spoken: True if the texts are references to count errors against.
    """

    name: str
    examples: list[Example]
    spoken: bool = False


@dataclass
class Row:
    """Results of one condition; pairs are (without, with) the guard.

    Attributes:
        name: of the condition.
        utterances: number of utterances, counted once per task.
        minutes: of audio, counted once per task.
        invented: words per minute; None for true speech.
        too_long: number of hypotheses over the length bound of ``guard.yaml``.
        error_rate: word (or character) error rate in percent; None unless the
            condition is recognition of true speech.
        flags: number of times that each flag was raised.
    """

    name: str
    utterances: int
    minutes: float
    invented: tuple[float, float] | None = None
    too_long: tuple[int, int] = (0, 0)
    error_rate: tuple[float, float] | None = None
    flags: dict[str, int] = field(default_factory=dict)


def benchmark_guard(
    model_dir: str,
    examples: str,
    music: Sequence[str | Path] = (),
    foreign: Sequence[tuple[str, str | Path]] = (),
    words: Sequence[tuple[str, str | Path]] = (),
    limit: int | None = None,
    config: str | None = None,
    batch_size: int = 8,
    device: str = "cpu",
    names: Sequence[str] = (),
) -> str:
    """Decode the conditions and return the results as a Markdown table.

    Args:
        model_dir: folder of a model with ``guard.yaml``.
        examples: example dir of the test set.
        music, foreign, words: as for :func:`make_conditions`.
        limit: number of test examples; all if None.
        config: decoding config; that of the model if None.
        batch_size: maximum number of utterances decoded together.
        device: ``cpu``, ``cuda``, …
        names: beginnings of the names of the conditions; all if empty.

    Raises:
        UserError: the model has no thresholds, or no condition has such a name.
    """
    from speechllm.inference.speech_to_text import SpeechToText

    conditions = make_conditions(read_examples(examples, limit), music, foreign, words)
    if names:
        known = [condition.name for condition in conditions]
        conditions = [c for c in conditions if c.name.startswith(tuple(names))]
        if not conditions:
            raise UserError(f"no condition {', '.join(names)}; of: {', '.join(known)}")
    model = SpeechToText.from_pretrained(model_dir, device, config=config)
    return guard_table(guard_rows(model, conditions, batch_size))


def make_conditions(
    clean: Sequence[Example],
    music: Sequence[str | Path] = (),
    foreign: Sequence[tuple[str, str | Path]] = (),
    words: Sequence[tuple[str, str | Path]] = (),
    pieces: int = 3,
    seed: int = 0,
) -> list[Condition]:
    """Make the conditions of the table; one without utterances is left out.

    Args:
        clean: the test set; every utterance is decoded with all of its tasks.
        music: audio files.
        foreign: (language, audio file) of speech that the model was not trained on.
        words: (word, audio file) of recordings of one word.
        pieces: number of utterances of each noise and of each piece of music.
        seed: of the noise.
    """
    rng = np.random.default_rng(seed)
    tasks = sorted({example.task for example in clean})
    recognition = [task for task in tasks if task.name == "asr"]

    def unspoken(waves: Sequence[np.ndarray]) -> list[Example]:
        return [
            Example(f"{i}", w, task, "") for i, w in enumerate(waves) for task in tasks
        ]

    samples = round(PIECE_SECONDS * SAMPLING_RATE)
    seconds = (0.5, 2.0, 10.0, 25.0)
    silence = [np.zeros(round(s * SAMPLING_RATE), np.float32) for s in seconds]
    conditions = [Condition("digital silence", unspoken(silence))]
    for name, make in (("white noise", white_noise), ("pink noise", pink_noise)):
        for level in NOISE_LEVELS:
            waves = [at_level(make(samples, rng), level) for _ in range(pieces)]
            conditions.append(Condition(f"{name} {level} dB", unspoken(waves)))
    if music:
        waves = [w for path in music for w in pieces_of(load_audio(path), pieces)]
        conditions.append(Condition("hold music", unspoken(waves)))
    for language in sorted({language for language, _ in foreign}):
        waves = [load_audio(path) for name, path in foreign if name == language]
        waves = [wave for wave in waves if len(wave)]
        conditions.append(Condition(f"speech in {language}", unspoken(waves)))
    clip = round(CLIP_SECONDS * SAMPLING_RATE)
    waves = [e.wave[len(e.wave) // 2 :][:clip] for e in clean if e.task == tasks[0]]
    conditions.append(Condition(f"clips of {CLIP_SECONDS} s", unspoken(waves[:20])))
    repeated = []
    for word, path in words:
        wave = load_audio(path)
        times = min(REPETITIONS, int(LONGEST_SECONDS * SAMPLING_RATE / len(wave)))
        text = " ".join([word] * times)
        repeated += [
            Example(word, np.tile(wave, times), task, text) for task in recognition[:1]
        ]
    if repeated:
        conditions.append(Condition("one word 30 times", repeated, spoken=True))
    clipped = [
        replace(e, wave=np.clip(CLIP_GAIN * e.wave, -1, 1).astype(np.float32))
        for e in clean
        if e.task.name == "asr"
    ]
    conditions.append(Condition("clipped audio", clipped, spoken=True))
    for task in tasks:
        chosen = [example for example in clean if example.task == task]
        conditions.append(Condition(f"clean {task.group}", chosen, spoken=True))
    return [condition for condition in conditions if condition.examples]


def white_noise(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return noise (samples,) of unit power with a flat spectrum."""
    return rng.standard_normal(samples)


def pink_noise(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return noise (samples,) of unit power that falls by 3 dB per octave."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    noise = np.fft.irfft(spectrum, samples)
    return noise / noise.std()


def at_level(wave: np.ndarray, level: float) -> np.ndarray:
    """Scale a waveform of unit power to ``level`` dB of full scale, and clip it."""
    return np.clip(10 ** (level / 20) * wave, -1, 1).astype(np.float32)


def pieces_of(wave: np.ndarray, pieces: int) -> list[np.ndarray]:
    """Cut pieces of ``PIECE_SECONDS``, spread evenly over a recording."""
    size = round(PIECE_SECONDS * SAMPLING_RATE)
    room = max(len(wave) - size, 0)
    starts = sorted({room * i // max(pieces - 1, 1) for i in range(pieces)})
    return [wave[start : start + size] for start in starts]


def guard_rows(
    model: SpeechToText,
    conditions: Sequence[Condition],
    batch_size: int = 8,
) -> list[Row]:
    """Decode each condition with the guard; results keep the unguarded texts too.

    Raises:
        UserError: the model has no thresholds.
    """
    if model.guard is None:
        raise UserError(
            "the model has no guard.yaml: run python -m speechllm.bin.guard_thresholds"
        )
    rows = []
    for condition in conditions:
        guarded = model.decode_all(
            [example.wave for example in condition.examples],
            [example.task for example in condition.examples],
            model.options({"guard": True}),
            batch_size,
        )
        results = [without_guard(result) for result in guarded], guarded
        rows.append(evaluate(condition, results, model.guard.thresholds))
        print(table_line(rows[-1]), flush=True)
    return rows


def without_guard(result: Result) -> Result:
    """Return a result with the texts from before the guard."""
    texts = {"text": result.unguarded, "transcript": result.unguarded_transcript}
    return replace(result, **{k: text for k, text in texts.items() if text is not None})


def evaluate(
    condition: Condition,
    results: tuple[Sequence[Result], Sequence[Result]],
    thresholds: Thresholds,
) -> Row:
    """Return the row of a condition, from results (without, with) the guard."""
    examples = condition.examples
    minutes = sum(len(e.wave) for e in examples) / SAMPLING_RATE / 60
    row = Row(condition.name, len(examples), minutes)
    unguarded, guarded = results

    def too_long(found: Sequence[Result]) -> int:
        return sum(is_too_long(e, r, thresholds) for e, r in zip(examples, found))

    def words_per_minute(found: Sequence[Result]) -> float:
        return sum(count_words(e, r) for e, r in zip(examples, found)) / minutes

    row.too_long = too_long(unguarded), too_long(guarded)
    if not condition.spoken:
        row.invented = words_per_minute(unguarded), words_per_minute(guarded)
    elif examples[0].task.name == "asr":
        row.error_rate = error_rate(examples, unguarded), error_rate(examples, guarded)
    row.flags = dict(Counter(flag for result in guarded for flag in result.flags))
    return row


def output_text(result: Result) -> str:
    """Return all text of a result: for ``asr_st``, transcript and translation."""
    return f"{result.transcript or ''} {result.text}"


def is_too_long(example: Example, result: Result, thresholds: Thresholds) -> bool:
    """Return True if a hypothesis exceeds the guard's length bound."""
    limits = thresholds.limits(example.task)
    seconds = len(example.wave) / SAMPLING_RATE
    bound = max(limits.max_characters(result.ctc_text or "", seconds), 0)
    return len(ctc_text(output_text(result), example.task.target)) > bound


def count_words(example: Example, result: Result) -> int:
    """Count the words of a hypothesis (characters in languages without spaces)."""
    text = normalize(output_text(result), example.task.target)
    return len(
        text if example.task.target in LANGUAGES_WITHOUT_SPACES else text.split()
    )


def error_rate(examples: Sequence[Example], results: Sequence[Result]) -> float:
    """Return the word (or character) error rate in percent."""
    errors = total = 0
    for example, result in zip(examples, results):
        language = example.task.source
        errors += count_errors(example.text, result.text, language)
        total += count_errors(example.text, "", language)
    return 100 * errors / max(total, 1)


def table_line(row: Row) -> str:
    """Format a row as a line of a Markdown table."""

    def pair(values, digits: int) -> str:
        if values is None:
            return "|"
        return " | ".join(f"{v:.{digits}f}" for v in values)

    flags = ", ".join(f"{name} {n}" for name, n in sorted(row.flags.items()))
    return (
        f"| {row.name} | {row.utterances} | {row.minutes:.1f} "
        f"| {pair(row.invented, 1)} | {pair(row.too_long, 0)} "
        f"| {pair(row.error_rate, 1)} | {flags} |"
    )


def guard_table(rows: Sequence[Row]) -> str:
    """Format the rows as a Markdown table with a total over noise and music."""
    names = [
        "condition",
        "utterances",
        "minutes",
        "invented words/min, without",
        "with",
        "over the length bound, without",
        "with",
        "WER %, without",
        "with",
        "flags",
    ]
    head = [f"| {' | '.join(names)} |", "| --- |" + " ---: |" * 8 + " --- |"]
    lines = [table_line(row) for row in rows]
    noise = [row for row in rows if "noise" in row.name or "music" in row.name]
    minutes = sum(row.minutes for row in noise)
    if minutes:
        total = Row("all noise and music", sum(r.utterances for r in noise), minutes)
        words = [sum(r.invented[k] * r.minutes for r in noise) for k in (0, 1)]
        total.invented = words[0] / minutes, words[1] / minutes
        counts = [sum(r.too_long[k] for r in noise) for k in (0, 1)]
        total.too_long = counts[0], counts[1]
        lines.append(table_line(total))
    return "\n".join(head + lines) + "\n"
