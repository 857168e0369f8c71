"""Checks of the signal: full scale, channels that cancel each other, silence."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from speechllm.utils.errors import UserError

#: Receives a sentence about a recording that was mended or is suspicious.
Report = Callable[[str], object]

SILENT = 1e-4  # peak: -80 dB of full scale
_MIX_SECONDS = 10.0  # the channels are compared in blocks of this length
_CANCELLED = 0.1  # power of the mean of the channels, relative to independent ones
_LOUDER = 4.0  # power of another channel that is read from there on
_MAX_OVERLOAD = 4.0  # peak of floats that are still in [-1, 1] but for some overload
_MIN_INT16_PEAK = 32.0  # peak from which floats are in the scale of int16: -60 dB
_INTEGER_SCALES = (2.0**15, 2.0**23, 2.0**31)


class PeakMeter:
    """Peak of a signal, and whether all its samples are whole numbers."""

    def __init__(self) -> None:
        self.peak = 0.0
        self.whole_numbers = True

    def add(self, samples: np.ndarray) -> None:
        """Add samples of any shape; NaN and infinite ones are left out."""
        finite = samples[np.isfinite(samples)]
        if finite.size:
            self.peak = max(self.peak, float(np.abs(finite).max()))
            self.whole_numbers &= bool((finite == np.rint(finite)).all())

    def full_scale(self) -> float:
        """Return the value of full scale: 1, or more for a signal that exceeds it.

        Whole numbers are in the scale of int16, or of the integers of 24 or 32 bits if
        they exceed it. Other numbers far above 1 are in the scale of int16, and those
        slightly above it are overloaded: full scale is their peak.

        Raises:
            UserError: the scale is unknown.
        """
        if self.peak <= (1.0 if self.whole_numbers else _MAX_OVERLOAD):
            return 1.0
        if self.whole_numbers:
            for scale in _INTEGER_SCALES:
                if self.peak <= scale:
                    return scale
        elif self.peak <= _MIN_INT16_PEAK:
            return self.peak
        elif self.peak <= 2 * _INTEGER_SCALES[0]:
            return max(_INTEGER_SCALES[0], self.peak)
        raise UserError(
            f"samples up to {self.peak:.3g}, full scale is 1; write the audio again"
        )


def measure_full_scale(
    blocks: Iterable[np.ndarray], name: str, report: Report
) -> float:
    """Return the value of full scale of floating-point audio; report another than 1.

    Raises:
        UserError: the scale is unknown.
    """
    meter = PeakMeter()
    for block in blocks:
        meter.add(block)
    try:
        scale = meter.full_scale()
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    if scale != 1.0:
        report(
            f"{name}: samples up to {meter.peak:.6g}, far above full scale; they are "
            f"divided by {scale:.6g}"
        )
    return scale


def scale_array(array: np.ndarray, name: str, report: Report) -> np.ndarray:
    """Return samples of an integer or float dtype as float32 in [-1, 1].

    Integers of 8, 16 and 32 bits are divided by their range; unsigned ones have their
    zero in the middle, as in WAV files. Floats and integers of 64 bits far above 1 are
    divided by the full scale that their peak suggests, which is reported.

    Raises:
        UserError: the scale is unknown.
    """
    dtype = array.dtype
    if dtype.kind in "iu" and dtype.itemsize <= 4:
        middle = 2.0 ** (8 * dtype.itemsize - 1)
        zero = middle if dtype.kind == "u" else 0.0
        return ((array.astype(np.float64) - zero) / middle).astype(np.float32)
    scale = measure_full_scale([array], name, report)
    if scale != 1.0:
        array = array / scale
    return array.astype(np.float32, copy=False)


class ChannelMixer:
    """Mean of the channels of a recording, or one channel where they cancel out.

    Channels of opposite sign (a wrongly wired microphone, a balanced line taken for
    stereo) cancel each other in their mean. Blocks of 10 s in which that happens are
    taken from the louder channel.
    """

    def __init__(self, rate: int, name: str, report: Report):
        self.size = int(_MIX_SECONDS * rate)
        self.name, self.report = name, report
        self.channel: int | None = None  # that was read where they cancelled
        self.held: list[np.ndarray] = []
        self.count = 0

    def push(self, samples: np.ndarray) -> list[np.ndarray]:
        """Add samples (frames, channels); return mono blocks (samples,)."""
        if samples.shape[1] == 1:
            return [samples[:, 0]]
        self.held.append(samples)
        self.count += len(samples)
        if self.count < self.size:
            return []
        whole = np.concatenate(self.held)
        full = self.count - self.count % self.size
        self.held, self.count = [whole[full:]], self.count - full
        return [self._mix(block) for block in np.split(whole[:full], full // self.size)]

    def flush(self) -> list[np.ndarray]:
        """Return the mono block of the remaining samples, if any."""
        held, self.held = self.held, []
        rest, self.count = self.count, 0
        return [self._mix(np.concatenate(held))] if rest else []

    def _mix(self, block: np.ndarray) -> np.ndarray:
        mono = block.mean(axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            powers = np.square(block, dtype=np.float64).mean(axis=0)
            power = np.square(mono, dtype=np.float64).mean()
            independent = powers.sum() / len(powers) ** 2
            cancelled = power < _CANCELLED * independent
        loudest = int(powers.argmax())
        if not cancelled or powers[loudest] < SILENT**2:
            return mono
        if self.channel is None:
            self.report(
                f"{self.name}: the channels cancel each other; channel {loudest + 1} "
                "is read there instead of their mean"
            )
            self.channel = loudest
        if powers[loudest] > _LOUDER * powers[self.channel]:
            self.channel = loudest
        return np.ascontiguousarray(block[:, self.channel])


def report_silence(peak: float, name: str, report: Report) -> None:
    """Report a recording whose peak is below -80 dB of full scale."""
    if peak < SILENT:
        report(f"{name}: silence, no sample is above -80 dB of full scale")


def as_array(audio: Any) -> np.ndarray:
    """Return an array, a list of numbers or a tensor as an array.

    Raises:
        UserError: it is none of them.
    """
    try:
        if hasattr(audio, "detach"):  # a tensor, which may need a gradient
            audio = audio.detach().cpu()
            audio = audio.float() if audio.is_floating_point() else audio
        array = np.asarray(audio)
    except Exception as error:
        raise UserError(f"not an array of samples: {error}") from None
    if array.dtype.kind not in "iuf":
        raise UserError(
            f"{type(audio).__name__} of {array.dtype}: expected the path of a file, or "
            "samples in [-1, 1]"
        )
    return array


def scale_block(block: np.ndarray) -> np.ndarray:
    """Return a block of a stream, as :func:`scale_array`; integers are scaled.

    Raises:
        UserError: floats far above 1, whose scale the other blocks may not share, or
            that are NaN or infinite.
    """
    if block.dtype == np.float32:
        meter = PeakMeter()
        meter.add(block)
        if not np.isfinite(block).all():
            raise UserError("a stream with samples that are NaN or infinite")
        if meter.peak <= _MAX_OVERLOAD:
            return block
        raise UserError(
            f"a stream with samples up to {meter.peak:.3g}: expected [-1, 1]; divide "
            "samples in the scale of int16 by 32768"
        )
    scaled = as_array(block)
    if scaled.dtype.kind == "f":
        return scale_block(scaled.astype(np.float32))
    return scale_array(scaled, "a stream", report=lambda _: None)
