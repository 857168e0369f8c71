"""Installation of the package; tools/install.sh builds the tested environment.

``install_requires`` lists what inference imports, with loose versions; the exact
versions, with hashes, are in tools/requirements. The extra ``train`` adds what the
recipes import. On Python 3.11 it does not list ESPnet, because the last version for
3.11 requires setuptools < 74 and torch >= 77: pip can install both only with
``--no-deps`` for ESPnet.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def version() -> str:
    """Return ``__version__`` of speechllm/__init__.py, without importing it."""
    text = (ROOT / "speechllm" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    if found is None:
        raise ValueError('speechllm/__init__.py: no line __version__ = "…"')
    return found.group(1)


def pins(name: str) -> list[str]:
    """Return the direct requirements of a group, from tools/requirements/<name>.in."""
    lines = (ROOT / "tools" / "requirements" / f"{name}.in").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


readme = ROOT / "README.md"
setup(
    name="speechllm",
    version=version(),
    description="Speech recognition and translation with large language models, "
    "as an ESPnet recipe",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["speechllm", "speechllm.*"]),
    package_data={"speechllm": ["py.typed", "**/*.yaml", "**/*.json", "**/*.tsv"]},
    install_requires=[
        "PyYAML",
        "av>=14",
        "gguf",
        "huggingface_hub",
        "kaldiio>=2.18",
        "num2words",
        "numpy",
        "peft>=0.17",
        "safetensors",
        "sentencepiece",
        "silero-vad>=6.2",
        "soundfile",
        "soxr",
        "torch>=2.11,!=2.12.0,!=2.12.1,<2.15",
        "tqdm",
        "transformers>=5.17,<5.24",  # 5.24 renames past_key_values, with a warning
    ],
    extras_require={
        "train": [
            "accelerate>=1.10",
            "espeakng-loader",
            "espnet>=202611 ; python_version >= '3.12'",
            # what espnet 202511 imports
            "h5py ; python_version < '3.12'",
            "humanfriendly ; python_version < '3.12'",
            "typeguard ; python_version < '3.12'",
            "jiwer>=4",
            "lhotse>=1.30",
            "matplotlib",
            "sacrebleu>=2.4",
            "scikit-learn",
            "tensorboard",
        ],
        "dev": pins("dev"),
        "demo": pins("demo"),
        "serve": pins("serve"),
        "qlora": pins("qlora"),
        "lightning": pins("lightning"),
        "deepspeed": pins("deepspeed"),
        # for `speechllm.bin.benchmark decode --against faster-whisper`
        "benchmark": ["faster-whisper==1.2.1"],
    },
    entry_points={"console_scripts": ["speechllm = speechllm.cli:console_main"]},
    classifiers=[
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)
