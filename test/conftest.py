"""Fixtures that several test modules share: real speech and real models."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from speechllm.corpora._asterisk_fetch import fetch_asterisk

pytest_plugins = ["fixtures_models", "fixtures_nue_asr", "fixtures_training"]

# Tests measure results, not time: a busy machine is no failure.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


def pytest_configure(config: pytest.Config) -> None:
    os.environ["SPEECHLLM_COMET_MODEL"] = "none"  # though it may be installed here
    config.addinivalue_line("markers", "slow: takes more than some seconds")
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


@pytest.fixture(scope="session")
def asterisk_dir() -> Path:
    """Folder of the unpacked Asterisk sounds, fetched once and kept in the cache."""
    if given := os.environ.get("SPEECHLLM_ASTERISK_DIR"):
        return Path(given)
    cache = Path(os.environ.get("SPEECHLLM_CACHE") or "~/.cache/speechllm")
    return fetch_asterisk(cache.expanduser())


@pytest.fixture(scope="session")
def speech_file(asterisk_dir: Path) -> Path:
    """Three seconds of English: "Please enter your password …"; raw G.722, 16 kHz."""
    folder = asterisk_dir / "usr/share/asterisk/sounds/en_US_f_Allison"
    return folder / "agent-pass.g722"
