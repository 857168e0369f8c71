"""Fixtures: Nue-ASR reference models, waveforms and the expected tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from nue_asr_reference import Reference


@pytest.fixture(scope="session", params=["group", "layer"])
def nue_reference(request, tmp_path_factory) -> Reference:
    """Tiny reference model, with each norm of HuBERT."""
    from nue_asr_reference import Reference  # transformers takes seconds

    root = tmp_path_factory.mktemp("nue")
    seed = {"group": 10, "layer": 8}[request.param]  # only some hypotheses end
    return Reference(root / request.param, request.param, seed)


@pytest.fixture(scope="session")
def nue_waves() -> list[np.ndarray]:
    """Waveforms from the bridge's minimum (10 frames) to seconds."""
    from nue_asr_reference import noise

    return noise([3400, 3280, 5000, 16000, 24601, 33000, 48017, 90000, 7777, 61234])


@pytest.fixture(scope="session")
def nue_tokens(nue_reference, nue_waves) -> list[list[int]]:
    """Token ids of the waveforms by the reference."""
    return [nue_reference.tokens(wave) for wave in nue_waves]
