"""Comparison of trainings that differ in their learning rate.

A training is a folder with ESPnet's ``config.yaml`` and ``tensorboard``. Those whose
folders have the same name, such as ``*/speechllm_train``, are compared with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speechllm.evaluation.tables import markdown_table
from speechllm.evaluation.training_curves import epoch_curves
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open, read_yaml

Curves = dict[str, dict[str, dict[int, float]]]


@dataclass(frozen=True)
class Training:
    """A training and its curves.

    Attributes:
        name: of its folder.
        rate: maximum learning rate.
        criterion: statistic on the validation set that selects checkpoints.
        mode: ``min`` or ``max`` of it is the best.
        curves: as from :func:`epoch_curves`.
    """

    name: str
    rate: float
    criterion: str
    mode: str
    curves: Curves

    def of(self, split: str, statistic: str) -> dict[int, float]:
        """Return ``{epoch: value}``; empty if the training has no such statistic."""
        return self.curves.get(split, {}).get(statistic, {})


def read_training(exp_dir: str | Path) -> Training:
    """Read the configuration and the curves of a training.

    Raises:
        UserError: no epoch is complete, or the configuration has no learning rate.
    """
    exp_dir = Path(exp_dir)
    config = read_yaml(exp_dir / "config.yaml")
    try:
        rate = float(config["optim_conf"]["lr"])
        _, criterion, mode = config["best_model_criterion"][0]
    except (KeyError, IndexError, TypeError, ValueError):
        raise UserError(
            f"{exp_dir / 'config.yaml'}: no optim_conf.lr or best_model_criterion; "
            "give folders of ESPnet's trainings"
        ) from None
    curves = epoch_curves(exp_dir / "tensorboard")
    training = Training(exp_dir.resolve().name, rate, criterion, mode, curves)
    if not training.of("valid", "loss") or not training.of("valid", criterion):
        raise UserError(
            f"{exp_dir}: no complete epoch in tensorboard/ (use_tensorboard: true)"
        )
    return training


def by_name(trainings: Sequence[Training]) -> dict[str, list[Training]]:
    """Group trainings by their names, by increasing learning rate."""
    groups: dict[str, list[Training]] = {}
    for training in sorted(trainings, key=lambda t: t.rate):
        groups.setdefault(training.name, []).append(training)
    return groups


def training_table(trainings: Sequence[Training]) -> str:
    """Return a Markdown table with a line per training.

    Losses are in nats per token, gradient norms the means of an epoch before clipping,
    clipped the percentage of its steps whose norm was above ``grad_clip``.
    """
    header = ["training", "learning rate", "epochs", "loss, train", "loss, valid"]
    header += ["best on valid", "gradient norm, first epoch", "last"]
    header += ["clipped % of steps, first epoch", "last"]
    lines = []
    for group in by_name(trainings).values():
        for training in group:
            scores = training.of("valid", training.criterion)
            best = (min if training.mode == "min" else max)(scores.values())
            loss = training.of("train", "loss")
            cells = [training.name, f"{training.rate:g}", len(scores)]
            cells += [f"{loss[max(loss)]:.3f}" if loss else "–"]
            valid = training.of("valid", "loss")
            cells += [f"{valid[max(valid)]:.3f}"]
            cells += [f"{training.criterion} {100 * best:.1f} %"]
            for name in ("grad_norm", "clip"):
                points = training.of("train", name)
                ends = (min(points), max(points)) if points else ()
                cells += [f"{points[end]:.1f}" for end in ends] or ["–", "–"]
            lines.append(cells)
    return markdown_table(header, lines)


def draw_trainings(trainings: Sequence[Training], picture: str | Path) -> None:
    """Draw a PNG: a row of panels per name, a curve per learning rate.

    The panels are the validation loss, the criterion on the validation set, the
    training loss and the gradient norm, by epoch.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    groups = by_name(trainings)
    figure = Figure(figsize=(13, 2.9 * len(groups)), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(len(groups), 4, squeeze=False)
    for (name, group), panels in zip(groups.items(), rows):
        criterion = group[0].criterion
        statistics = [("valid", "loss"), ("valid", criterion)]
        statistics += [("train", "loss"), ("train", "grad_norm")]
        for axes, (split, statistic) in zip(panels, statistics):
            for training in group:
                points = training.of(split, statistic)
                if points:
                    label = f"{training.rate:g}"
                    axes.plot(*zip(*points.items()), "o-", ms=3, label=label)
            axes.set_title(f"{name}: {statistic}, {split}", fontsize=9)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
        panels[0].legend(title="learning rate")
    with atomic_open(picture, "wb") as stream:
        figure.savefig(stream, format="png", dpi=75)


def compare_trainings(exp_dirs: Sequence[str | Path], output: str | Path) -> str:
    """Write ``<output>.md`` and ``<output>.png`` of trainings; return the table.

    Raises:
        UserError: as for :func:`read_training`.
    """
    trainings = [read_training(exp_dir) for exp_dir in exp_dirs]
    output = Path(output)
    draw_trainings(trainings, output.parent / f"{output.name}.png")
    table = training_table(trainings)
    with atomic_open(output.parent / f"{output.name}.md") as stream:
        stream.write(f"# Trainings\n\n{table}\n![curves]({output.name}.png)\n")
    return table
