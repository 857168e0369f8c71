"""Packaging. Use tools/install.sh to set up a tested environment.

``install_requires`` lists the imported packages with loose versions; the exact
versions, with hashes, are in tools/requirements. espnet is not listed: its metadata
requires setuptools < 74 and torch's >= 77, so pip can install both only if espnet is
installed with ``--no-deps``, as tools/install.sh does.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def version() -> str:
    """Return the version of ``speechllm/__init__.py``."""
    text = (ROOT / "speechllm" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    return found.group(1) if found else "0.1.0"


def pins(name: str) -> list[str]:
    """Return the requirements listed in tools/requirements/<name>.in."""
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
    python_requires=">=3.11",
    packages=find_packages(include=["speechllm", "speechllm.*"]),
    package_data={"speechllm": ["**/*.yaml", "**/*.json", "**/*.tsv"]},
    install_requires=[
        "ConfigArgParse",
        "accelerate>=1.10",
        "av>=14",
        "editdistance",
        "einops",
        "espeakng-loader",
        "gguf",
        "h5py",
        "huggingface_hub",
        "humanfriendly",
        "jiwer>=4",
        "kaldiio>=2.18",
        "lhotse>=1.30",
        "librosa",
        "matplotlib",
        "num2words",
        "numpy",
        "packaging",
        "peft>=0.17",
        "PyYAML",
        "rich",
        "sacrebleu>=2.4",
        "safetensors",
        "scikit-learn",
        "scipy",
        "sentencepiece",
        "silero-vad>=6.2",
        "soundfile",
        "soxr",
        "tensorboard",
        "torch>=2.11",
        "torch_complex",
        "tqdm",
        "transformers>=5.17",
        "typeguard",
    ],
    extras_require={
        "dev": pins("dev"),
        "demo": pins("demo"),
        "qlora": pins("qlora"),
        # for `speechllm.bin.benchmark decode --against faster-whisper`
        "benchmark": ["faster-whisper==1.2.1"],
    },
    entry_points={"console_scripts": ["speechllm = speechllm.cli:console_main"]},
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
    ],
)
