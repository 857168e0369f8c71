"""Voice activity detection with Silero VAD."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechllm.audio.io import SAMPLING_RATE
from speechllm.utils.errors import UserError

WINDOW = 512  # samples, as the model was trained
CONTEXT = 64  # samples of the window before, which the model sees again
SECONDS_PER_WINDOW = WINDOW / SAMPLING_RATE
RECENT = 16  # windows that the detector's second opinion rests on, about half a second


class SpeechDetector(nn.Module):
    """Silero VAD for 16 kHz, over many windows at once.

    Its own code takes one window after the other; only the LSTM needs that order,
    so the convolutions before it run over a whole block here.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("fourier", torch.zeros(258, 1, 256))
        self.convolutions = nn.ModuleList(
            nn.Conv1d(*channels, kernel_size=3, stride=stride, padding=1)
            for channels, stride in [
                ((129, 128), 1),
                ((128, 64), 2),
                ((64, 64), 2),
                ((64, 128), 1),
            ]
        )
        self.lstm = nn.LSTM(128, 128)
        self.output = nn.Linear(128, 1)

    @torch.inference_mode()
    def forward(self, windows: Tensor, state: tuple | None = None):
        """Probability of speech in consecutive windows.

        The LSTM hears a window twice: after all that came before it, as in Silero's
        code, and after the last half second alone. Behind music the first takes its
        time to believe in speech, and cuts off its beginning.

        Args:
            windows: (windows, 64 + 512): the end of the window before, the window.
            state: what the call for the windows before the first returned.

        Returns:
            Both probabilities (2, windows), and the state after the last window.
        """
        padded = F.pad(windows, (0, CONTEXT), mode="reflect")[:, None]
        spectrum = F.conv1d(padded, self.fourier, stride=128)  # (windows, 258, 4)
        real, imaginary = spectrum.chunk(2, dim=1)
        hidden = (real**2 + imaginary**2).sqrt()
        for convolution in self.convolutions:
            hidden = F.relu(convolution(hidden))
        hidden = hidden.squeeze(2)  # (windows, 128)
        memory, before = state or (None, hidden.new_zeros(RECENT - 1, hidden.shape[1]))
        known = torch.cat([before, hidden])
        after_all, memory = self.lstm(hidden[:, None], memory)
        recent = known.unfold(0, RECENT, 1).permute(2, 0, 1)  # (16, windows, 128)
        after_recent, _ = self.lstm(recent)
        both = torch.stack([after_all[:, 0], after_recent[-1]])
        probabilities = torch.sigmoid(self.output(F.relu(both)))[..., 0]
        return probabilities, (memory, known[len(hidden) :])


@cache
def load_detector() -> SpeechDetector:
    """Silero VAD with the weights that its wheel ships.

    They are read from the wheel's TorchScript file, without importing the package,
    which sets torch's threads to 1 when it is imported.

    Raises:
        UserError: the package silero-vad is not installed.
    """
    from importlib import metadata

    try:
        files = metadata.files("silero-vad") or []
        path = next(f.locate() for f in files if f.name == "silero_vad.jit")
    except (metadata.PackageNotFoundError, StopIteration):
        raise UserError(
            "finding speech needs silero-vad: pip install 'silero-vad>=6.2'"
        ) from None
    with warnings.catch_warnings():  # that TorchScript will go; torch is pinned
        warnings.simplefilter("ignore", DeprecationWarning)
        weights = torch.jit.load(str(path), map_location="cpu").state_dict()
    names = {"fourier": "stft.forward_basis_buffer"}
    for part in ("weight", "bias"):
        for layer in range(4):
            theirs = f"encoder.{layer}.reparam_conv.{part}"
            names[f"convolutions.{layer}.{part}"] = theirs
        for side in ("ih", "hh"):
            names[f"lstm.{part}_{side}_l0"] = f"decoder.rnn.{part}_{side}"
        names[f"output.{part}"] = f"decoder.decoder.2.{part}"
    detector = SpeechDetector()
    detector.load_state_dict(
        {
            ours: weights["_model." + theirs].reshape(detector.state_dict()[ours].shape)
            for ours, theirs in names.items()
        }
    )
    return detector.eval()


def speech_probabilities(
    blocks: Iterable[np.ndarray],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Probability of speech in every window of a stream.

    Args:
        blocks: float32 samples (samples,) at 16 kHz, of any lengths.

    Yields:
        Samples (512 × windows,) and the two probabilities (2, windows) of
        :class:`SpeechDetector`. The last window is filled up with zeros for the
        detector, and its samples come unfilled.
    """
    detector, state = load_detector(), None
    context = np.zeros(CONTEXT, np.float32)
    for samples in whole_windows(blocks):
        count = -(-len(samples) // WINDOW)
        filled = np.zeros(CONTEXT + count * WINDOW, np.float32)
        filled[:CONTEXT] = context
        filled[CONTEXT : CONTEXT + len(samples)] = samples
        windows = torch.from_numpy(filled).unfold(0, CONTEXT + WINDOW, WINDOW)
        found, state = detector(windows, state)
        context = filled[-CONTEXT:]
        yield samples, found.numpy()


def whole_windows(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Cut a stream into blocks of whole windows; only the last may have a rest."""
    rest = np.zeros(0, np.float32)
    for block in blocks:
        rest = np.concatenate([rest, block])
        whole = len(rest) - len(rest) % WINDOW
        if whole:
            yield rest[:whole]
            rest = rest[whole:]
    if len(rest):
        yield rest
