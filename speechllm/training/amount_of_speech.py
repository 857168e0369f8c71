"""Amount of speech that a training processes, from its configuration."""

from __future__ import annotations

from speechllm.audio.io import SAMPLING_RATE

UTTERANCE_SECONDS = 10.0  # assumed length of an utterance


def batch_seconds(config: dict) -> float:
    """Return the seconds of speech in one batch, padding included."""
    if config.get("batch_type", "folded") in ("numel", "length"):
        bins = config.get("batch_bins", 1000000)
        return max(bins / SAMPLING_RATE, UTTERANCE_SECONDS)
    return config.get("batch_size", 20) * UTTERANCE_SECONDS


def training_hours(config: dict, hours: float) -> float:
    """Return the hours of speech that a training processes, padding included.

    Args:
        config: a training configuration.
        hours: speech in the training set, which is an epoch by default.
    """
    batches = config.get("num_iters_per_epoch")
    epoch = batches * batch_seconds(config) / 3600 if batches else hours
    return config.get("max_epoch", 40) * epoch


def describe_amount(config: dict, hours: float) -> str:
    """Return :func:`training_hours` as text, compared with the training set."""
    processed = training_hours(config, hours)
    passes = processed / hours
    return f"{processed:.1f} h of speech, {passes:.1f} times the training set"
