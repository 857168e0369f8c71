"""Benchmark of long-form recognition on joined recordings."""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from speechllm.utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from speechllm.decoding.result import Word


JOINS = ("pauses", "music", "none", "trimmed")
TOLERANCE = 0.1  # seconds
SILENCE_DB = -35.0  # of a frame at a prompt's edge, beside its loudest frame
RATE = 16000
FRAME = RATE // 100
NOISE = 10 ** (-70 / 20)  # level of the near silence


@dataclass(frozen=True)
class Prompt:
    """A prompt, its words, and the samples (first, last + 1) where it is loud."""

    words: list[str]
    samples: np.ndarray
    limits: tuple[int, int]


@dataclass(frozen=True)
class Placed:
    """Where a prompt's speech begins and ends in a recording, in seconds."""

    prompt: int
    start: float
    end: float


def benchmark(args: argparse.Namespace, options: dict) -> None:
    """Transcribe the prompts one by one, and then each recording."""
    from speechllm.inference.speech_to_text import SpeechToText
    from speechllm.text.normalization import normalize

    model = SpeechToText.from_pretrained(args.model)
    options.setdefault("batch_size", 8)
    prompts = read_prompts(Path(args.examples), args.language)
    begin = time.monotonic()
    single = model.transcribe(
        [prompt.samples for prompt in prompts], language=args.language, **options
    )
    texts = [normalize(result.text, args.language).split() for result in single]
    seconds = sum(len(prompt.samples) for prompt in prompts) / RATE
    took = time.monotonic() - begin
    print(
        f"{len(prompts)} prompts, {seconds:.0f} s of audio, one by one in {took:.0f} s"
    )
    rate = word_error_rate([p.words for p in prompts], texts)
    print(f"WER one by one, each once: {rate:.1f}\n")
    print(
        "| join | minutes | prompts | segments | WER | one by one | difference "
        "| inside | first | last | seconds |"
    )
    print("| --- " * 11 + "|")
    for join in args.joins:
        row = [join, *benchmark_join(model, prompts, texts, join, args, options)]
        print("| " + " | ".join(row) + " |", flush=True)


def benchmark_join(model, prompts, texts, join, args, options) -> list[str]:
    """The cells of a recording's row."""
    from speechllm.audio.io import stream_audio
    from speechllm.inference.long_form import transcribe_long
    from speechllm.inference.subtitles import format_srt, make_cues
    from speechllm.text.normalization import normalize
    from speechllm.utils.io import atomic_open

    path = Path(args.output_dir) / f"{join}_{args.minutes:g}.wav"
    placed = write_recording(path, prompts, join, args)
    times = model.ctc_tokenizer is not None
    begin = time.monotonic()
    [found] = transcribe_long(
        model,
        [stream_audio(path)],
        language=args.language,
        max_seconds=args.max_seconds,
        pause_seconds=args.pause_seconds,
        **({"word_times": True} if times else {}),
        **options,
    )
    took = time.monotonic() - begin
    with atomic_open(path.with_suffix(".srt")) as stream:
        stream.write(format_srt(make_cues(found.result, args.language)))
    reference = [word for p in placed for word in prompts[p.prompt].words]
    rate = word_error_rate(
        [reference], [normalize(found.result.text, args.language).split()]
    )
    alone = word_error_rate(
        [prompts[p.prompt].words for p in placed], [texts[p.prompt] for p in placed]
    )
    shares = ["-"] * 3
    if times:
        words = found.result.words or []
        shares = [
            f"{100 * share:.1f} %"
            for share in time_shares(prompts, placed, words, args.language)
        ]
    counts = [f"{args.minutes:g}", str(len(placed)), str(len(found.result.passages))]
    rates = [f"{rate:.1f}", f"{alone:.1f}", f"{rate - alone:+.1f}"]
    return [*counts, *rates, *shares, f"{took:.0f}"]


def read_prompts(examples: Path, language: str) -> list[Prompt]:
    """The transcribed prompts of one language."""
    from speechllm.audio.io import load_audio
    from speechllm.data.kaldi_table import read_table
    from speechllm.text.normalization import normalize

    tasks = read_table(examples / "utt2task")
    wavs, texts = read_table(examples / "wav.scp"), read_table(examples / "text")
    names = [u for u, task in tasks.items() if task == f"asr {language} {language}"]
    if not names:
        raise UserError(f"{examples}: nothing to transcribe in {language}")
    prompts = []
    for name in names:
        samples = load_audio(wavs[name])
        words = normalize(texts[name], language).split()
        prompts.append(Prompt(words, samples, speech_limits(samples)))
    return prompts


def speech_limits(samples: np.ndarray) -> tuple[int, int]:
    """Samples (first, last + 1) of what is loud, in steps of 10 ms."""
    import numpy as np

    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    level = np.sqrt((frames**2).mean(1))
    loud = np.flatnonzero(level > level.max() * 10 ** (SILENCE_DB / 20))
    return int(loud[0]) * FRAME, (int(loud[-1]) + 1) * FRAME


def write_recording(
    path: Path, prompts: list[Prompt], join: str, args: argparse.Namespace
) -> list[Placed]:
    """Write a recording of joined prompts, and tell where they are."""
    import soundfile

    placed: list[Placed] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    choose = random.Random(args.seed)
    order = shuffled_rounds(len(prompts), choose)
    between = gaps(join, args, choose)
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as sound:
        while (there := sound.tell()) < args.minutes * 60 * RATE:
            number = next(order)
            first, last = prompts[number].limits
            cut = first if join == "trimmed" else 0
            begin, end = (there + edge - cut for edge in (first, last))
            placed.append(Placed(number, begin / RATE, end / RATE))
            samples = prompts[number].samples
            sound.write(samples[first:last] if join == "trimmed" else samples)
            sound.write(next(between))
    return placed


def shuffled_rounds(count: int, choose: random.Random) -> Iterator[int]:
    """All numbers in shuffled order, again and again."""
    while True:
        order = list(range(count))
        choose.shuffle(order)
        yield from order


def gaps(
    join: str, args: argparse.Namespace, choose: random.Random
) -> Iterator[np.ndarray]:
    """What stands between one prompt and the next, without end."""
    import numpy as np

    from speechllm.audio.io import load_audio
    from speechllm.inference.recordings import find_recordings

    if join in ("none", "trimmed"):
        yield from itertools.repeat(np.zeros(0, np.float32))
    noise = np.random.default_rng(args.seed)
    while join == "pauses":
        count = round(choose.uniform(0.3, 2.0) * RATE)
        yield (NOISE * noise.standard_normal(count)).astype(np.float32)
    pieces = find_recordings([args.music])
    while True:
        music = load_audio(choose.choice(pieces).source)
        for _ in range(20):  # parts of a piece before the next one
            count = round(choose.uniform(2.0, 8.0) * RATE)
            begin = choose.randrange(max(len(music) - count, 1))
            yield music[begin : begin + count]


def word_error_rate(references: list[list[str]], found: list[list[str]]) -> float:
    """In percent of the reference's words."""
    import jiwer

    def joined(texts: list[list[str]]) -> list[str]:
        return [" ".join(words) for words in texts]

    return 100 * jiwer.wer(joined(references), joined(found))


def time_shares(
    prompts: list[Prompt], placed: list[Placed], words: list[Word], language: str
) -> tuple[float, float, float]:
    """Which share of the recognised words lies where its prompt lies.

    Returns:
        Of all words that were recognised, those inside their prompts; of the
        recognised first words those that begin, of the last ones those that end, where
        their prompts do. See the module's docstring.
    """
    import jiwer

    from speechllm.text.normalization import normalize

    expected = [  # (word, its prompt's place, first, last)
        (word, place, number == 0, number == len(prompts[place.prompt].words) - 1)
        for place in placed
        for number, word in enumerate(prompts[place.prompt].words)
    ]
    heard = [
        (plain, word)
        for word in words
        for plain in normalize(word.text, language).split()
    ]
    aligned = jiwer.process_words(
        [" ".join(word for word, *_ in expected)],
        [" ".join(word for word, _ in heard)],
    )
    inside, first, last = [], [], []
    for chunk in aligned.alignments[0]:
        if chunk.type != "equal":
            continue
        for offset in range(chunk.ref_end_idx - chunk.ref_start_idx):
            _, place, begins, ends = expected[chunk.ref_start_idx + offset]
            _, word = heard[chunk.hyp_start_idx + offset]
            early, late = place.start - word.start, word.end - place.end
            inside.append(max(early, late) <= TOLERANCE)
            if begins:
                first.append(abs(early) <= TOLERANCE)
            if ends:
                last.append(abs(late) <= TOLERANCE)

    def share(found: list[bool]) -> float:
        return sum(found) / max(len(found), 1)

    return share(inside), share(first), share(last)
