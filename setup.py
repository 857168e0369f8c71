"""Installation of the package; tools/install.sh is the tried way to an environment.

``install_requires`` names what the package imports, loosely; the exact versions,
with hashes, are in tools/requirements. espnet is left out of it on purpose: its
metadata demands setuptools < 74 and torch's demands >= 77, so pip can install
both only when espnet comes with ``--no-deps`` (as tools/install.sh does).
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def version() -> str:
    text = (ROOT / "speechllm" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    return found.group(1) if found else "0.1.0"


def pins(name: str) -> list[str]:
    """The direct requirements of one group, from tools/requirements/<name>.in."""
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
        # what `speechllm.bin.benchmark decode --against faster-whisper` asks for
        "benchmark": ["faster-whisper==1.2.1"],
    },
    entry_points={"console_scripts": ["speechllm = speechllm.cli:console_main"]},
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
    ],
)
