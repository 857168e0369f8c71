"""Reliability diagram of word confidence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechllm.decoding.confidence import BINS, bins, expected_calibration_error


def reliability_picture(
    path: str | Path,
    curves: dict[str, tuple[Sequence[float], Sequence[bool]]],
) -> None:
    """Draw accuracy over confidence, with the number of words below.

    Args:
        path: an image that matplotlib writes, such as ``.png``.
        curves: a name and (probabilities, right) of each curve.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(5, 6), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    above.plot([0, 1], [0, 1], color="grey", linestyle=":", label="as it should be")
    for name, (probabilities, right) in curves.items():
        rows = bins(probabilities, right)
        error = expected_calibration_error(probabilities, right)
        label = f"{name}: ECE {error:.3f}"
        above.plot([p for _, p, _ in rows], [a for *_, a in rows], "o-", label=label)
        below.hist(probabilities, bins=BINS, range=(0, 1), histtype="step")
    above.set(ylabel="share of words that are right", ylim=(0, 1))
    below.set(xlabel="confidence", ylabel="words", xlim=(0, 1))
    above.legend()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
