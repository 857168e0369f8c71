"""Voice activity detection with Silero VAD.

Silero VAD (Silero Team 2024, https://github.com/snakers4/silero-vad) gives the
probability of speech of every window of 32 ms. The architecture is rebuilt here for
whole blocks of audio; the weights come from the package silero-vad.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechllm.audio.io import SAMPLING_RATE
from speechllm.audio.signal_checks import scale_block
from speechllm.utils.errors import UserError

WINDOW = 512  # samples, fixed by the training of the model
CONTEXT = 64  # samples of the previous window that are input again
SECONDS_PER_WINDOW = WINDOW / SAMPLING_RATE
RECENT = 16  # windows of the second probability, about half a second


class SpeechDetector(nn.Module):
    """Silero VAD for 16 kHz, over many windows at once.

    Silero's own code runs one window after the other. Only the LSTM needs that order,
    so the convolutions run over a whole block here.
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
        """Return two speech probabilities of consecutive windows.

        The LSTM runs over each window twice: with all earlier windows as context, as
        in Silero's code, and with the last half second only. After music the first
        rises late and would cut off the beginning of speech.

        Args:
            windows: (windows, 64 + 512), the end of the previous window and the window.
            state: state that the call for the previous windows returned.

        Returns:
            Both probabilities (2, windows) and the state after the last window.
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
    """Load Silero VAD with the weights of the installed package.

    They are read from its TorchScript file, since its safetensors file has the weights
    of another training (6.2.3). The package itself is not imported, because that would
    set torch's threads to 1.

    Raises:
        UserError: the package silero-vad is not installed.
    """
    from importlib import metadata

    try:
        files = metadata.files("silero-vad") or []
        path = next(f.locate() for f in files if f.name == "silero_vad.jit")
    except (metadata.PackageNotFoundError, StopIteration):
        raise UserError(
            "voice activity detection needs silero-vad: pip install 'silero-vad>=6.2'"
        ) from None
    with warnings.catch_warnings():  # TorchScript is deprecated; torch is pinned
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        weights = torch.jit.load(str(path), map_location="cpu").state_dict()
    names = {"fourier": "stft.forward_basis_buffer"}
    for part in ("weight", "bias"):
        for layer in range(4):
            source = f"encoder.{layer}.reparam_conv.{part}"
            names[f"convolutions.{layer}.{part}"] = source
        for side in ("ih", "hh"):
            names[f"lstm.{part}_{side}_l0"] = f"decoder.rnn.{part}_{side}"
        names[f"output.{part}"] = f"decoder.decoder.2.{part}"
    detector = SpeechDetector()
    detector.load_state_dict(
        {
            target: weights["_model." + source].reshape(
                detector.state_dict()[target].shape
            )
            for target, source in names.items()
        }
    )
    return detector.eval()


def speech_probabilities(
    blocks: Iterable[np.ndarray],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the speech probabilities of a stream of audio.

    Args:
        blocks: float32 samples (samples,) at 16 kHz, of any lengths.

    Yields:
        Samples (512 × windows,) and the two probabilities (2, windows) of
        :class:`SpeechDetector`. The last window may be shorter; the detector gets it
        padded with zeros.
    """
    detector, state = load_detector(), None
    context = np.zeros(CONTEXT, np.float32)
    for samples in _whole_windows(blocks):
        count = -(-len(samples) // WINDOW)
        padded = np.zeros(CONTEXT + count * WINDOW, np.float32)
        padded[:CONTEXT] = context
        padded[CONTEXT : CONTEXT + len(samples)] = samples
        windows = torch.from_numpy(padded).unfold(0, CONTEXT + WINDOW, WINDOW)
        probabilities, state = detector(windows, state)
        context = padded[-CONTEXT:]
        yield samples, probabilities.numpy()


def _whole_windows(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Regroup a stream into blocks of whole windows; the last may end in a part."""
    rest = np.zeros(0, np.float32)
    for block in blocks:
        rest = np.concatenate([rest, scale_block(block)])
        whole = len(rest) - len(rest) % WINDOW
        if whole:
            yield rest[:whole]
            rest = rest[whole:]
    if len(rest):
        yield rest
