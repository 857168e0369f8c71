"""Benchmark of long-form recognition on recordings joined from short prompts.

The prompts of an example dir are joined in shuffled rounds to a recording of some
minutes. Between two prompts, ``pauses`` inserts 0.3 to 2 s of near silence, ``music``
2 to 8 s of hold music and ``none`` nothing; ``trimmed`` also removes the silence at the
edges of the prompts, so that words of two prompts touch. Each recording is transcribed,
and its WER is compared with that of the same prompts decoded one by one.

The reference of word times is the position of the prompt in the recording, from the
first to the last 10 ms frame that is at most 35 dB below the prompt's loudest frame. A
recognised word is *inside* if it exceeds its prompt by at most 100 ms at either end;
first and last words of a prompt must begin and end within 100 ms of its limits. In
languages written without spaces, characters take the place of words, and the CER that
of the WER.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speechllm.audio.io import SAMPLING_RATE, load_audio, stream_audio
from speechllm.utils.errors import UserError
from speechllm.utils.folders import FolderKind, claim_directory

if TYPE_CHECKING:
    from speechllm.decoding.result import Word
    from speechllm.inference.speech_to_text import SpeechToText

RECORDINGS = FolderKind("folder of benchmark recordings", ("*_*.srt",))
JOINS = ("pauses", "music", "none", "trimmed")
TOLERANCE = 0.1  # seconds
SILENCE_DB = -35.0  # threshold at a prompt's edges, relative to its loudest frame
FRAME = SAMPLING_RATE // 100  # samples
NOISE = 10 ** (-70 / 20)  # root mean square of the near silence
COLUMNS = (
    "join", "minutes", "prompts", "segments", "{metric}", "one by one", "difference",
    "inside", "first", "last", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class LongFormSet:
    """The recordings to make and how to transcribe them.

    Attributes:
        examples: example dir of the prompts.
        output_dir: folder for the recordings and their subtitles.
        language: of the prompts.
        minutes: length of each recording.
        joins: some of ``JOINS``.
        music: folder of hold music, needed for the join ``music``.
        max_seconds: maximum length of a segment.
        pause_seconds: minimum pause between two segments.
        seed: of the order of the prompts and of the pauses.
    """

    examples: str
    output_dir: str
    language: str = "en"
    minutes: float = 10.0
    joins: Sequence[str] = JOINS
    music: str | None = None
    max_seconds: float = 15.0
    pause_seconds: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Prompt:
    """A prompt: its words, its samples, and the limits (first, last + 1) of speech.

    Its words are normalised, and characters in languages written without spaces.
    """

    words: list[str]
    samples: np.ndarray
    limits: tuple[int, int]


@dataclass(frozen=True)
class Placed:
    """The index of a prompt, and where its speech lies in a recording, in seconds."""

    prompt: int
    start: float
    end: float


def benchmark_long_form(model_dir: str, content: LongFormSet, options: dict) -> None:
    """Print the error rate of the prompts, then a table row for each recording.

    Args:
        model_dir: folder of a trained model.
        options: ``batch_size`` and fields of ``SearchOptions``.

    Raises:
        UserError: no prompts in the language, or no music for the join ``music``.
    """
    from speechllm.inference.speech_to_text import SpeechToText
    from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES

    if "music" in content.joins and not content.music:
        raise UserError("--joins music needs a folder of hold music: give --music")
    model = SpeechToText.from_pretrained(model_dir)
    options = {"batch_size": 8, **options}
    prompts = read_prompts(Path(content.examples), content.language)
    begin = time.monotonic()
    single = model.transcribe(
        [prompt.samples for prompt in prompts], language=content.language, **options
    )
    texts = [scored_words(result.text, content.language) for result in single]
    seconds = sum(len(prompt.samples) for prompt in prompts) / SAMPLING_RATE
    elapsed = time.monotonic() - begin
    print(
        f"{len(prompts)} prompts, {seconds:.0f} s of audio, one by one in "
        f"{elapsed:.0f} s"
    )
    metric = "CER" if content.language in LANGUAGES_WITHOUT_SPACES else "WER"
    rate = error_rate([p.words for p in prompts], texts)
    print(f"{metric} one by one, each once: {rate:.1f}\n")
    print(f"| {' | '.join(COLUMNS).format(metric=metric)} |")
    print("| --- " * len(COLUMNS) + "|")
    for join in content.joins:
        row = [join, *measure_join(model, prompts, texts, join, content, options)]
        print("| " + " | ".join(row) + " |", flush=True)


def measure_join(
    model: SpeechToText,
    prompts: Sequence[Prompt],
    texts: Sequence[list[str]],
    join: str,
    content: LongFormSet,
    options: dict,
) -> list[str]:
    """Make and transcribe one recording; return the cells of its table row.

    Args:
        texts: words recognised in each prompt decoded alone.
    """
    from speechllm.inference.long_form import transcribe_long
    from speechllm.inference.subtitles import format_srt, make_cues
    from speechllm.utils.io import atomic_open

    language, minutes = content.language, content.minutes
    folder = claim_directory(content.output_dir, RECORDINGS)
    path = folder / f"{join}_{minutes:g}.wav"
    placed = write_recording(path, prompts, join, minutes, content.music, content.seed)
    has_times = model.ctc_tokenizer is not None
    begin = time.monotonic()
    [found] = transcribe_long(
        model,
        [stream_audio(path)],
        language=language,
        max_seconds=content.max_seconds,
        pause_seconds=content.pause_seconds,
        **({"word_times": True} if has_times else {}),
        **options,
    )
    elapsed = time.monotonic() - begin
    with atomic_open(path.with_suffix(".srt")) as stream:
        stream.write(format_srt(make_cues(found.result, language)))
    reference = [word for p in placed for word in prompts[p.prompt].words]
    rate = error_rate([reference], [scored_words(found.result.text, language)])
    alone = error_rate(
        [prompts[p.prompt].words for p in placed], [texts[p.prompt] for p in placed]
    )
    shares = ["-"] * 3
    if has_times:
        words = found.result.words or []
        shares = [
            f"{100 * share:.1f} %"
            for share in time_shares(prompts, placed, words, language)
        ]
    counts = [f"{minutes:g}", str(len(placed)), str(len(found.result.passages))]
    rates = [f"{rate:.1f}", f"{alone:.1f}", f"{rate - alone:+.1f}"]
    return [*counts, *rates, *shares, f"{elapsed:.0f}"]


def read_prompts(examples: Path, language: str) -> list[Prompt]:
    """Read the recognition examples of one language.

    Raises:
        UserError: the example dir has none.
    """
    from speechllm.data.examples import read_utt2task
    from speechllm.data.kaldi_table import read_table
    from speechllm.text.tasks import Task

    tasks, wanted = read_utt2task(examples), Task("asr", language, language)
    wavs, texts = read_table(examples / "wav.scp"), read_table(examples / "text")
    names = [u for u, task in tasks.items() if task == wanted]
    if not names:
        raise UserError(
            f"{examples}: nothing to transcribe in {language}; check --language"
        )
    prompts = []
    for name in names:
        samples = load_audio(wavs[name])
        words = scored_words(texts[name], language)
        prompts.append(Prompt(words, samples, speech_limits(samples)))
    return prompts


def scored_words(text: str, language: str) -> list[str]:
    """Return normalised words; characters in languages written without spaces."""
    from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES, normalize

    text = normalize(text, language)
    return list(text) if language in LANGUAGES_WITHOUT_SPACES else text.split()


def speech_limits(samples: np.ndarray) -> tuple[int, int]:
    """Return the limits (first, last + 1) of speech in samples, in steps of 10 ms."""
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    level = np.sqrt((frames**2).mean(1))  # (frames,)
    loud = np.flatnonzero(level > level.max() * 10 ** (SILENCE_DB / 20))
    return int(loud[0]) * FRAME, (int(loud[-1]) + 1) * FRAME


def write_recording(
    path: Path,
    prompts: Sequence[Prompt],
    join: str,
    minutes: float,
    music: str | None = None,
    seed: int = 0,
) -> list[Placed]:
    """Write a recording of joined prompts and return their positions."""
    import soundfile

    placed: list[Placed] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    order = shuffled_rounds(len(prompts), rng)
    gaps = make_gaps(join, music, seed, rng)
    with soundfile.SoundFile(path, "w", SAMPLING_RATE, 1, "PCM_16") as sound:
        while (position := sound.tell()) < minutes * 60 * SAMPLING_RATE:
            index = next(order)
            first, last = prompts[index].limits
            cut = first if join == "trimmed" else 0
            begin, end = (position + edge - cut for edge in (first, last))
            placed.append(Placed(index, begin / SAMPLING_RATE, end / SAMPLING_RATE))
            samples = prompts[index].samples
            sound.write(samples[first:last] if join == "trimmed" else samples)
            sound.write(next(gaps))
    return placed


def shuffled_rounds(count: int, rng: random.Random) -> Iterator[int]:
    """Yield all indices in shuffled order, round after round, without end."""
    while True:
        order = list(range(count))
        rng.shuffle(order)
        yield from order


def make_gaps(
    join: str, music: str | None, seed: int, rng: random.Random
) -> Iterator[np.ndarray]:
    """Yield the samples between two prompts, without end."""
    from speechllm.inference.recordings import find_recordings

    if join in ("none", "trimmed"):
        yield from itertools.repeat(np.zeros(0, np.float32))
    noise = np.random.default_rng(seed)
    while join == "pauses":
        count = round(rng.uniform(0.3, 2.0) * SAMPLING_RATE)
        yield (NOISE * noise.standard_normal(count)).astype(np.float32)
    pieces = find_recordings([music] if music else [])
    while True:
        samples = load_audio(rng.choice(pieces).source)
        for _ in range(20):  # excerpts of a piece before the next piece
            count = round(rng.uniform(2.0, 8.0) * SAMPLING_RATE)
            begin = rng.randrange(max(len(samples) - count, 1))
            yield samples[begin : begin + count]


def error_rate(
    references: Sequence[list[str]], hypotheses: Sequence[list[str]]
) -> float:
    """Return the error rate of words (see :func:`scored_words`) in percent."""
    import jiwer

    def joined(texts: Sequence[list[str]]) -> list[str]:
        return [" ".join(words) for words in texts]

    return 100 * jiwer.wer(joined(references), joined(hypotheses))


def time_shares(
    prompts: Sequence[Prompt],
    placed: Sequence[Placed],
    words: Sequence[Word],
    language: str,
) -> tuple[float, float, float]:
    """Return the shares of correctly recognised words with correct times.

    Returns:
        Shares, 0 to 1, of words inside their prompts, of first words that begin and of
        last words that end where their prompts do; see the module's docstring.
    """
    import jiwer

    expected = [  # (word, position of its prompt, is first, is last)
        (word, place, number == 0, number == len(prompts[place.prompt].words) - 1)
        for place in placed
        for number, word in enumerate(prompts[place.prompt].words)
    ]
    recognised = [
        (part, word) for word in words for part in scored_words(word.text, language)
    ]
    aligned = jiwer.process_words(
        [" ".join(word for word, *_ in expected)],
        [" ".join(part for part, _ in recognised)],
    )
    inside, first, last = [], [], []
    for chunk in aligned.alignments[0]:
        if chunk.type != "equal":
            continue
        for offset in range(chunk.ref_end_idx - chunk.ref_start_idx):
            _, place, is_first, is_last = expected[chunk.ref_start_idx + offset]
            _, word = recognised[chunk.hyp_start_idx + offset]
            early, late = place.start - word.start, word.end - place.end
            inside.append(max(early, late) <= TOLERANCE)
            if is_first:
                first.append(abs(early) <= TOLERANCE)
            if is_last:
                last.append(abs(late) <= TOLERANCE)

    def share(marks: list[bool]) -> float:
        return sum(marks) / max(len(marks), 1)

    return share(inside), share(first), share(last)
