"""What the guard is worth: texts with and without it where a speech LLM invents.

Silence, noise, music, a language the model has not learnt, clips that hold no word,
clipped audio, one word said thirty times (true speech, which must stay), and the clean
test set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speechllm.audio.io import SAMPLING_RATE, load_audio
from speechllm.data.examples import Example
from speechllm.inference.guard_thresholds import Thresholds
from speechllm.inference.tuning import count_errors
from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES, ctc_text, normalize
from speechllm.text.tasks import group_name
from speechllm.utils.errors import UserError

if TYPE_CHECKING:
    from speechllm.decoding.result import Result
    from speechllm.inference.speech_to_text import SpeechToText


PIECE_SECONDS = 10.0  # of noise and music at a time
NOISE_LEVELS = (-60, -40, -20, -6)  # dB, root mean square below full scale
REPETITIONS, LONGEST_SECONDS = 30, 29.0
CLIP_SECONDS, CLIP_GAIN = 0.05, 30.0


@dataclass(frozen=True)
class Condition:
    """A name, and utterances; the true text is empty where there is nothing to hear.

    Attributes:
        spoken: whether the texts are true ones, that errors are counted against.
    """

    name: str
    examples: list[Example]
    spoken: bool = False


@dataclass
class Row:
    """Figures of one condition, (without, with) the guard.

    Attributes:
        minutes: of audio, each task counted.
        invented: words for each minute where nothing true can be written.
        too_long: hypotheses over the length bound of ``guard.yaml``.
        error_rate: in percent, of recognition of true speech.
        flags: how often each was raised.
    """

    name: str
    utterances: int
    minutes: float
    invented: tuple[float, float] | None = None
    too_long: tuple[int, int] = (0, 0)
    error_rate: tuple[float, float] | None = None
    flags: dict[str, int] = field(default_factory=dict)


def conditions(
    clean: Sequence[Example],
    music: Sequence[str | Path] = (),
    foreign: Sequence[tuple[str, str | Path]] = (),
    words: Sequence[tuple[str, str | Path]] = (),
    pieces: int = 3,
    seed: int = 0,
) -> list[Condition]:
    """Make the conditions of the table.

    Args:
        clean: the test set; its tasks are asked of everything.
        music: audio files.
        foreign: (language, audio file) of speech that the model has not learnt.
        words: (word, audio file) of recordings of one word.
        pieces: utterances of each noise, and pieces of each piece of music.
        seed: of the noise.
    """
    random = np.random.default_rng(seed)
    asks = sorted({example.ask for example in clean})
    spoken = [ask for ask in asks if ask[0] == "asr"]

    def asked(waves: Sequence[np.ndarray]) -> list[Example]:
        return [
            Example(f"{i}", w, ask, "") for i, w in enumerate(waves) for ask in asks
        ]

    samples = round(PIECE_SECONDS * SAMPLING_RATE)
    seconds = (0.5, 2.0, 10.0, 25.0)
    silence = [np.zeros(round(s * SAMPLING_RATE), np.float32) for s in seconds]
    found = [Condition("digital silence", asked(silence))]
    for name, make in (("white noise", white_noise), ("pink noise", pink_noise)):
        for level in NOISE_LEVELS:
            waves = [at_level(make(samples, random), level) for _ in range(pieces)]
            found.append(Condition(f"{name} {level} dB", asked(waves)))
    if music:
        waves = [w for path in music for w in pieces_of(load_audio(path), pieces)]
        found.append(Condition("hold music", asked(waves)))
    for language in sorted({language for language, _ in foreign}):
        waves = [load_audio(path) for name, path in foreign if name == language]
        waves = [wave for wave in waves if len(wave)]
        found.append(Condition(f"speech in {language}", asked(waves)))
    clip = round(CLIP_SECONDS * SAMPLING_RATE)
    waves = [e.wave[len(e.wave) // 2 :][:clip] for e in clean if e.ask == asks[0]]
    found.append(Condition(f"clips of {CLIP_SECONDS} s", asked(waves[:20])))
    repeated = []
    for word, path in words:
        wave = load_audio(path)
        times = min(REPETITIONS, int(LONGEST_SECONDS * SAMPLING_RATE / len(wave)))
        text = " ".join([word] * times)
        repeated += [
            Example(word, np.tile(wave, times), ask, text) for ask in spoken[:1]
        ]
    if repeated:
        found.append(Condition("one word 30 times", repeated, spoken=True))
    heard = [example for example in clean if example.ask[0] == "asr"]
    clipped = [
        replace(e, wave=np.clip(CLIP_GAIN * e.wave, -1, 1).astype(np.float32))
        for e in heard
    ]
    found.append(Condition("clipped audio", clipped, spoken=True))
    for ask in asks:
        chosen = [example for example in clean if example.ask == ask]
        found.append(Condition(f"clean {group_name(ask)}", chosen, spoken=True))
    return found


def white_noise(samples: int, random: np.random.Generator) -> np.ndarray:
    """Noise of equal power at all frequencies, of unit power."""
    return random.standard_normal(samples)


def pink_noise(samples: int, random: np.random.Generator) -> np.ndarray:
    """Noise whose power falls by 3 dB an octave, of unit power."""
    spectrum = np.fft.rfft(random.standard_normal(samples))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    noise = np.fft.irfft(spectrum, samples)
    return noise / noise.std()


def at_level(wave: np.ndarray, level: float) -> np.ndarray:
    """A waveform of unit power at ``level`` dB below full scale, clipped there."""
    return np.clip(10 ** (level / 20) * wave, -1, 1).astype(np.float32)


def pieces_of(wave: np.ndarray, pieces: int) -> list[np.ndarray]:
    """Pieces of ``PIECE_SECONDS``, evenly from a recording."""
    size = round(PIECE_SECONDS * SAMPLING_RATE)
    room = max(len(wave) - size, 0)
    starts = sorted({room * i // max(pieces - 1, 1) for i in range(pieces)})
    return [wave[start : start + size] for start in starts]


def guard_rows(
    model: SpeechToText,
    found: Sequence[Condition],
    generation: dict,
    batch_size: int = 8,
) -> list[Row]:
    """Decode each condition with the guard, which keeps the texts that it changed.

    Raises:
        UserError: the model has no thresholds.
    """
    if model.guard is None:
        raise UserError(
            "the model has no guard.yaml: run python -m speechllm.bin.guard_thresholds"
        )
    rows = []
    for condition in found:
        guarded = decode_all(
            model, condition.examples, {**generation, "guard": True}, batch_size
        )
        free = [
            result
            if result.unguarded is None
            else replace(result, text=result.unguarded)
            for result in guarded
        ]
        results = (free, guarded)
        rows.append(figures(condition, results, model.guard.thresholds))
        print(table_line(rows[-1]), flush=True)
    return rows


def decode_all(
    model: SpeechToText, examples: Sequence[Example], generation: dict, batch_size: int
) -> list[Result]:
    """One result for each example, in order."""
    from speechllm.utils.batching import batches_by_length

    options = model.options(generation)
    results: dict[int, Result] = {}
    for batch in batches_by_length([len(e.wave) for e in examples], batch_size):
        part = [examples[i] for i in batch]
        answers = model.decode([e.wave for e in part], [e.ask for e in part], options)
        results.update(zip(batch, answers))
    return [results[i] for i in range(len(examples))]


def figures(
    condition: Condition,
    results: Sequence[Sequence[Result]],
    thresholds: Thresholds,
) -> Row:
    """The figures of one condition, from results without and with the guard."""
    examples = condition.examples
    minutes = sum(len(e.wave) for e in examples) / SAMPLING_RATE / 60
    row = Row(condition.name, len(examples), minutes)
    row.too_long = tuple(
        sum(is_too_long(e, r, thresholds) for e, r in zip(examples, found))
        for found in results
    )
    if not condition.spoken:
        words = [sum(words_in(e, r) for e, r in zip(examples, f)) for f in results]
        row.invented = tuple(count / minutes for count in words)
    elif examples[0].ask[0] == "asr":
        row.error_rate = tuple(error_rate(examples, found) for found in results)
    for result in results[1]:
        for flag in result.flags:
            row.flags[flag] = row.flags.get(flag, 0) + 1
    return row


def written(result: Result) -> str:
    """All that an answer says: of ``asr_st`` transcript and translation."""
    return f"{result.transcript or ''} {result.text}"


def is_too_long(example: Example, result: Result, thresholds: Thresholds) -> bool:
    """Whether an answer is longer than the guard's length bound."""
    limits = thresholds.limits(example.ask)
    seconds = len(example.wave) / SAMPLING_RATE
    most = max(limits.longest(result.ctc_text or "", seconds), 0)
    return len(ctc_text(written(result), example.ask[2])) > most


def words_in(example: Example, result: Result) -> int:
    """Words (in Japanese and its like: characters) of an answer."""
    text = normalize(written(result), example.ask[2])
    return len(text if example.ask[2] in LANGUAGES_WITHOUT_SPACES else text.split())


def error_rate(examples: Sequence[Example], results: Sequence[Result]) -> float:
    """Word (or character) error rate in percent."""
    errors = total = 0
    for example, result in zip(examples, results):
        language = example.ask[1]
        errors += count_errors(example.text, result.text, language)
        total += count_errors(example.text, "", language)
    return 100 * errors / max(total, 1)


def table_line(row: Row) -> str:
    """The row as a line of a Markdown table."""

    def pair(values, digits: int) -> str:
        if values is None:
            return "|"
        return " | ".join(f"{v:.{digits}f}" for v in values)

    flags = ", ".join(f"{name} {n}" for name, n in sorted(row.flags.items()))
    return (
        f"| {row.name} | {row.utterances} | {row.minutes:.1f} | {pair(row.invented, 1)} "
        f"| {pair(row.too_long, 0)} | {pair(row.error_rate, 1)} | {flags} |"
    )


def guard_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, with the sum over noise and music below."""
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
    noise = [row for row in rows if "noise" in row.name or "music" in row.name]
    minutes = sum(row.minutes for row in noise)
    lines = [table_line(row) for row in rows]
    if minutes:
        words = [sum(r.invented[k] * r.minutes for r in noise) for k in (0, 1)]
        total = Row("all noise and music", sum(r.utterances for r in noise), minutes)
        total.invented = tuple(count / minutes for count in words)
        total.too_long = tuple(sum(r.too_long[k] for r in noise) for k in (0, 1))
        lines.append(table_line(total))
    return "\n".join(head + lines) + "\n"
