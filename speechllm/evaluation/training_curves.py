"""Training curves from the TensorBoard files of ESPnet's trainer."""

from __future__ import annotations

import math
from pathlib import Path

from speechllm.utils.io import atomic_open

#: Statistics in the figure of training curves, one panel each.
CURVES = ("loss", "loss_att", "loss_ctc", "acc", "cer_ctc", "wer")


def epoch_curves(log_dir: str | Path) -> dict[str, dict[str, dict[int, float]]]:
    """Read the mean of each statistic over each epoch.

    ESPnet writes ``iter_epoch`` (the epoch's number) and the epoch's means at the same
    step; values at other steps belong to single iterations and are ignored. A resumed
    training repeats steps; their last value is used.

    Args:
        log_dir: ``tensorboard`` folder of an experiment, with ``train`` and ``valid``.

    Returns:
        ``{"train" | "valid": {statistic: {epoch: value}}}``; empty if no epoch is
        complete.
    """
    from tensorboard.backend.event_processing.event_accumulator import (
        SCALARS,
        EventAccumulator,
    )

    scalars: dict[str, dict[str, list]] = {}
    for split in ("train", "valid"):
        folder = Path(log_dir) / split
        scalars[split] = {}
        if folder.is_dir():
            events = EventAccumulator(
                str(folder), size_guidance={SCALARS: 0}, purge_orphaned_data=False
            ).Reload()
            for name in events.Tags()[SCALARS]:
                # files of one second are read in the order of their names, 10 before 9
                scalars[split][name] = sorted(
                    events.Scalars(name), key=lambda event: event.wall_time
                )
    steps: dict[int, int] = {}
    for event in scalars["train"].get("iter_epoch", []):
        epoch = int(event.value)
        steps = {old: step for old, step in steps.items() if old < epoch}
        steps[epoch] = event.step
    curves: dict[str, dict[str, dict[int, float]]] = {}
    for split, statistics in scalars.items():
        for name, events in statistics.items():
            if name == "iter_epoch":
                continue
            # ESPnet writes NaN for statistics that a training does not have
            last = {e.step: e.value for e in events if not math.isnan(e.value)}
            points = {
                epoch: last[step] for epoch, step in steps.items() if step in last
            }
            if points:
                curves.setdefault(split, {})[name] = points
    return curves


def varying_statistics(curves: dict[str, dict[str, dict[int, float]]]) -> list[str]:
    """Return the statistics of ``CURVES`` that have more than one value.

    Others would be flat panels, such as ``loss_ctc`` of a training without CTC.
    """
    values = {
        name: {v for found in curves.values() for v in found.get(name, {}).values()}
        for name in CURVES
    }
    return [name for name in CURVES if len(values[name]) > 1]


def draw_training_curves(exp_dir: str | Path) -> Path | None:
    """Draw ``training_curves.png``: a panel per statistic with train and valid curves.

    Statistics that never change are left out.

    Returns:
        Path of the figure; None if there is nothing to draw.
    """
    exp_dir = Path(exp_dir)
    curves = epoch_curves(exp_dir / "tensorboard")
    names = varying_statistics(curves)
    if not names:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(exp_dir.name)
    for position, name in enumerate(names, 1):
        axes = figure.add_subplot(rows, columns, position)
        for split, style in (("train", "o-C0"), ("valid", "s-C1")):
            points = curves.get(split, {}).get(name, {})
            if points:
                axes.plot(*zip(*points.items()), style, ms=3, label=split)
        axes.set_title(name)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    picture = exp_dir / "training_curves.png"
    with atomic_open(picture, "wb") as stream:
        figure.savefig(stream, format="png", dpi=100)
    return picture
