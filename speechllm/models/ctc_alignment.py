"""The most probable CTC path of a text: forced alignment of labels to frames.

Graves et al. 2006, "Connectionist Temporal Classification", with a maximum in place of
the sum; as in torchaudio's tutorial "Forced alignment with Wav2Vec2".
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from speechllm.models.precision import to_float64_device
from speechllm.text.ctc_labels import BLANK, NEVER


def forced_align(
    log_probs: Tensor, labels: Sequence[int] | Tensor, blank: int = BLANK
) -> tuple[Tensor, Tensor]:
    """Return the most probable path of CTC labels for a text.

    Uses torchaudio where it loads, else :func:`viterbi`, with the same path.

    Args:
        log_probs: (frames, labels), any floating type.
        labels: (n,) the text, without blanks; it may be empty.
        blank: index of the blank.

    Returns:
        The label of each frame (frames,), blanks included, and its log probability
        (frames,).

    Raises:
        ValueError: the text needs more frames than there are (two equal labels need
            a blank between them), or it contains a blank.
    """
    log_probs = to_float64_device(log_probs)
    labels = torch.as_tensor(labels, dtype=torch.long, device=log_probs.device)
    if (labels == blank).any():
        raise ValueError("a text has no blanks")
    needed = frames_needed(labels.tolist())
    if needed > len(log_probs):
        raise ValueError(f"{needed} frames are needed, there are {len(log_probs)}")
    if not len(labels):
        return torch.full_like(log_probs[:, 0], blank, dtype=torch.long), log_probs[
            :, blank
        ]
    by_torchaudio = torchaudio_forced_align()
    if by_torchaudio is None:
        path = viterbi(log_probs, labels, blank)
    else:
        aligned, _ = by_torchaudio(log_probs[None], labels[None], blank=blank)
        path = aligned[0].long()
    return path, log_probs.gather(1, path[:, None])[:, 0]


def frames_needed(labels: Sequence[int]) -> int:
    """Return the minimum number of frames for the labels."""
    return len(labels) + sum(a == b for a, b in itertools.pairwise(labels))


@functools.cache
def torchaudio_forced_align() -> Callable[..., tuple[Tensor, Tensor]] | None:
    """Return torchaudio's function; None if torchaudio is missing or does not load."""
    try:
        from torchaudio.functional import forced_align as function
    except (ImportError, OSError):  # its wheel needs CUDA's libraries
        return None
    return cast("Callable[..., tuple[Tensor, Tensor]]", function)


def viterbi(
    log_probs: Tensor, labels: Tensor, blank: int = BLANK, open_end: bool = False
) -> Tensor:
    """Return the most probable path (frames,) of labels (n,), n > 0, in plain torch.

    The states are blank, label 1, blank, label 2, …, blank. From each, a path stays,
    moves to the next, or skips the blank between two different labels. With
    ``open_end`` it may end in any state.
    """
    frames, states = len(log_probs), 2 * len(labels) + 1
    spelt = torch.full((states,), blank, device=labels.device)
    spelt[1::2] = labels
    emitted = log_probs[:, spelt].double()  # (frames, states)
    closed = torch.zeros(states, dtype=torch.double, device=labels.device)
    closed[::2] = NEVER  # no skip to a blank, nor between equal labels
    closed[3::2][labels[1:] == labels[:-1]] = NEVER
    score = torch.full_like(closed, NEVER)
    score[:2] = emitted[0, :2]
    steps = torch.zeros(frames, states, dtype=torch.long, device=labels.device)
    ways = torch.full((3, states), NEVER, dtype=torch.double, device=labels.device)
    for frame in range(1, frames):
        ways[0] = score
        ways[1, 1:] = score[:-1]
        ways[2, 2:] = score[:-2] + closed[2:]
        best, steps[frame] = ways.max(0)
        score = best + emitted[frame]
    state = states - 1 if score[-1] > score[-2] else states - 2
    if open_end:
        state = int(score.argmax())
    path, back = [state], steps.tolist()
    for frame in range(frames - 1, 0, -1):
        state -= back[frame][state]
        path.append(state)
    return spelt[torch.tensor(path[::-1], device=labels.device)]
