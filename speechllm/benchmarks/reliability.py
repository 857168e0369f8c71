"""Calibration of word confidence on a test set: errors and reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from speechllm.decoding.confidence import (
    BINS,
    Calibration,
    bins,
    expected_calibration_error,
    uncalibrated,
)
from speechllm.utils.io import atomic_open

if TYPE_CHECKING:
    from speechllm.data.examples import Example
    from speechllm.decoding.options import SearchOptions
    from speechllm.inference.speech_to_text import SpeechToText

#: For each word of a test set: probability of being correct, and whether it is.
Curve = tuple[Sequence[float], Sequence[bool]]


def reliability_curves(
    model: SpeechToText,
    calibration: Calibration,
    examples: Sequence[Example],
    options: SearchOptions,
    batch_size: int = 8,
) -> dict[str, Curve]:
    """Return the word confidences of CTC, of the LLM and after calibration.

    Args:
        examples: test set; only its recognition examples are decoded.
    """
    from speechllm.inference.tuning import labelled_words

    features, correct = labelled_words(model, examples, options, batch_size)
    return {
        "CTC": ([uncalibrated(f) for f in features], correct),
        "LLM": ([f[2] for f in features], correct),
        "calibrated": ([calibration.probability(f) for f in features], correct),
    }


def reliability_summary(curves: dict[str, Curve]) -> str:
    """Format the share of correct words and the expected calibration errors."""
    _, correct = next(iter(curves.values()))
    share = sum(correct) / len(correct)
    lines = [f"{len(correct)} test words, {share:.1%} of them right"]
    for name, (probabilities, marks) in curves.items():
        error = expected_calibration_error(probabilities, marks)
        lines.append(f"expected calibration error, {name}: {error:.3f}")
    return "\n".join(lines)


def reliability_picture(path: str | Path, curves: dict[str, Curve]) -> None:
    """Draw accuracy over confidence, with a histogram of the words below.

    Args:
        path: image file in a format of matplotlib, such as ``.png``.
        curves: probabilities and correctness by name.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(5, 6), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    above.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfect calibration")
    for name, (probabilities, correct) in curves.items():
        rows = bins(probabilities, correct)
        error = expected_calibration_error(probabilities, correct)
        label = f"{name}: ECE {error:.3f}"
        above.plot([p for _, p, _ in rows], [a for *_, a in rows], "o-", label=label)
        below.hist(probabilities, bins=BINS, range=(0, 1), histtype="step")
    above.set(ylabel="share of correct words", ylim=(0, 1))
    below.set(xlabel="confidence", ylabel="words", xlim=(0, 1))
    above.legend()
    form = Path(path).suffix[1:] or "png"
    with atomic_open(path, "wb") as stream:
        figure.savefig(stream, format=form, dpi=120)
    pyplot.close(figure)
