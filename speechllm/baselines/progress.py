"""Progress lines and intervals of the trainings in this package."""

from __future__ import annotations

import sys

PROGRESS_SECONDS = 15  # between two progress lines
SAVE_SECONDS = 1800  # between two states to resume from


def print_progress(text: str) -> None:
    """Print a progress line, which the recipe shows while the command runs."""
    print(f"progress: {text}", file=sys.stderr, flush=True)


def print_training_progress(
    position: str, losses: list[float], seconds_left: float
) -> None:
    """Print a progress line of a training and begin a new mean of its loss.

    Args:
        position: how far it is, such as ``step 12``.
        losses: of the steps since the last line; emptied.
        seconds_left: estimate.
    """
    print_progress(
        f"{position}, loss {sum(losses) / len(losses):.3f}, "
        f"about {seconds_left / 60:.0f} min left"
    )
    losses.clear()
