"""Speech synthesis with eSpeak NG through its C interface.

The library and its voices are in the Python package ``espeakng-loader``; the numbers of
functions and parameters are those of eSpeak NG's ``speak_lib.h``.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from speechllm.audio.io import SAMPLING_RATE
from speechllm.utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np


_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples go to the callback
_UTF8 = 1  # espeakCHARS_UTF8
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER


@dataclass(frozen=True)
class Voice:
    """A voice of eSpeak NG and its settings.

    Attributes:
        name: eSpeak's voice, with a variant after ``+``: ``fr+f3``.
        words_per_minute: speaking rate.
        pitch, pitch_range: from 0 to 100.
    """

    name: str
    words_per_minute: int = 160
    pitch: int = 50
    pitch_range: int = 50


def speak(text: str, voice: Voice, sampling_rate: int = SAMPLING_RATE) -> np.ndarray:
    """Synthesise a text.

    Args:
        text: text in the voice's language.
        voice: the voice.
        sampling_rate: of the result, in Hz.

    Returns:
        float32 (samples,) from -1 to 1.

    Raises:
        UserError: the voice does not exist, or the text yields no sound.
    """
    import numpy as np
    import soxr

    library, rate, pieces = _library()
    if library.espeak_SetVoiceByName(voice.name.encode()) != 0:
        raise UserError(f"eSpeak NG has no voice {voice.name!r}")
    library.espeak_SetParameter(_RATE, voice.words_per_minute, 0)
    library.espeak_SetParameter(_PITCH, voice.pitch, 0)
    library.espeak_SetParameter(_RANGE, voice.pitch_range, 0)
    pieces.clear()
    content = text.encode() + b"\0"
    library.espeak_Synth(content, len(content), 0, 0, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    if not pieces:
        raise UserError(f"eSpeak NG yields no sound for {text!r}")
    wave = np.concatenate(pieces).astype(np.float32) / 32768
    return soxr.resample(wave, rate, sampling_rate)


@cache
def _library() -> tuple[ctypes.CDLL, int, list]:
    """Return the library, its sampling rate and the list that receives its samples."""
    import numpy as np
    from espeakng_loader import get_data_path, get_library_path

    library = ctypes.CDLL(get_library_path())
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, get_data_path().encode(), 0)
    if rate < 0:
        raise UserError(f"eSpeak NG cannot be initialised: {get_library_path()}")
    pieces: list[np.ndarray] = []

    @ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
    )
    def keep(samples, count, _):
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(keep)
    library.keep_alive = keep  # the C library holds no Python reference to it
    return library, rate, pieces
