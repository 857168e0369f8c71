"""Fixtures and settings shared by all tests."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings

from speechllm.corpora._asterisk_fetch import fetch_asterisk

NOT_RUN = pytest.StashKey[list[str]]()  # messages about tests that were deselected
pytest_plugins = [
    "fixtures_models",
    "fixtures_nue_asr",
    "fixtures_training",
    "sendable_reports",
]

# No deadlines: tests must pass on a slow or busy machine too.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


def pytest_configure(config: pytest.Config) -> None:
    os.environ["SPEECHLLM_COMET_MODEL"] = "none"  # skip COMET even if it is installed
    config.addinivalue_line("markers", "slow: takes more than a few seconds")
    config.addinivalue_line("markers", "gpu: needs a CUDA device")
    config.addinivalue_line("markers", "vllm: needs an installed vLLM")
    config.addinivalue_line(
        "markers", "badinput: all bad inputs; only with -m badinput"
    )


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Deselect tests that need a GPU or vLLM, and bad inputs unless ``-m`` names them.

    The summary names the reason of the former (``pytest_terminal_summary``). Recipes
    run first: in parallel runs short tests fill the other processes meanwhile.
    """
    items.sort(key=lambda item: "recipes" not in item.path.parts)
    config.stash[NOT_RUN] = []
    for marker, available, reason in (
        ("gpu", torch.cuda.is_available(), "a GPU were not run: torch finds no CUDA"),
        ("vllm", find_spec("vllm"), "vLLM were not run: it is not installed"),
    ):
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and not available:
            config.hook.pytest_deselected(items=marked)
            items[:] = [item for item in items if item not in marked]
            config.stash[NOT_RUN].append(f"{len(marked)} tests that need {reason}")
    if "badinput" in config.getoption("-m"):
        return
    long = [item for item in items if item.get_closest_marker("badinput")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say which tests this machine cannot run."""
    for message in config.stash.get(NOT_RUN, []):
        terminalreporter.write_line(message)


@pytest.fixture(scope="session")
def asterisk_dir() -> Path:
    """Return the folder of the Asterisk sounds, downloaded once into the cache."""
    if folder := os.environ.get("SPEECHLLM_ASTERISK_DIR"):
        return Path(folder)
    cache = Path(os.environ.get("SPEECHLLM_CACHE") or "~/.cache/speechllm").expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "asterisk-core-sounds.lock"):  # of parallel test processes
        return fetch_asterisk(cache)


@pytest.fixture(scope="session")
def speech_file(asterisk_dir: Path) -> Path:
    """Return 3 s of English ("Please enter your password …"), raw 16 kHz G.722."""
    folder = asterisk_dir / "usr/share/asterisk/sounds/en_US_f_Allison"
    return folder / "agent-pass.g722"
