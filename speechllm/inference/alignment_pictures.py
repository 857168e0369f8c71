"""Pictures of utterances: spectrogram, and the words of texts aligned by CTC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speechllm.audio.io import SAMPLING_RATE
from speechllm.inference.align_transcript import TimedWord, align_words, ctc_log_probs
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open

if TYPE_CHECKING:
    from speechllm.inference.speech_to_text import SpeechToText

WINDOW, SHIFT = 400, 160  # samples of the spectrogram: 25 and 10 ms


def align_each(
    model: SpeechToText, wave: np.ndarray, texts: Mapping[str, str], language: str
) -> dict[str, list[TimedWord]]:
    """Align several texts with an utterance.

    Args:
        model: with a trained CTC branch.
        wave: (samples,) at 16 kHz.
        texts: by name.

    Returns:
        The words of each text; none of a text that is empty or does not fit.
    """
    assert model.ctc_tokenizer is not None
    log_probs = ctc_log_probs(model, wave, language)
    rate = model.model.encoder.num_frames_per_second
    found: dict[str, list[TimedWord]] = {}
    for name, text in texts.items():
        try:
            found[name] = align_words(
                [text], log_probs, language, model.ctc_tokenizer, rate, wave
            )
        except UserError:
            found[name] = []
    return found


def draw_alignment(
    path: str | Path,
    title: str,
    wave: np.ndarray,
    rows: Mapping[str, Sequence[TimedWord]],
) -> None:
    """Draw a PNG: a row of words for each text, over the spectrogram.

    Args:
        wave: (samples,) at 16 kHz.
        rows: aligned words by the name of their text.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    seconds = len(wave) / SAMPLING_RATE
    figure = Figure(figsize=(max(6, min(1.6 * seconds, 24)), 4), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 3))
    below.specgram(
        np.pad(wave, (0, WINDOW)) + 1e-6,  # of silence too, whose logarithm is -inf
        NFFT=WINDOW,
        noverlap=WINDOW - SHIFT,
        Fs=SAMPLING_RATE,
        cmap="Greys",
    )
    for height, words in enumerate(rows.values()):
        for word in words:
            middle = (word.start + word.end) / 2
            above.axvspan(
                word.start, word.end, height / len(rows), (height + 1) / len(rows),
                facecolor="none", edgecolor=f"C{height}",
            )  # fmt: skip
            above.text(
                middle, height + 0.5, word.text.replace("$", r"\$"),
                ha="center", va="center", rotation=30, fontsize=7,
            )  # fmt: skip
            for time in (word.start, word.end):
                below.axvline(time, color=f"C{height}", linewidth=0.6)
    above.set(ylim=(0, len(rows)), xlim=(0, seconds))
    above.set_yticks([height + 0.5 for height in range(len(rows))], list(rows))
    above.set_title(title.replace("$", r"\$"), fontsize=9)
    below.set(xlabel="s", ylabel="Hz")
    with atomic_open(path, "wb") as stream:
        figure.savefig(stream, format="png", dpi=90)
