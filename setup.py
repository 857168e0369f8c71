"""Installation of the package; tools/install.sh builds the tested environment.

``install_requires`` lists what the package imports, with loose versions; the exact
versions, with hashes, are in tools/requirements. Only training needs espnet. On Python
3.11 it is not listed because its last version for 3.11 requires setuptools < 74 and
torch >= 77: pip can install both only with ``--no-deps`` for espnet.
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
        "ConfigArgParse",
        "accelerate>=1.10",
        "av>=14",
        "editdistance",
        "einops",
        "espnet>=202611 ; python_version >= '3.12'",
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
        "torch>=2.11,!=2.12.0,!=2.12.1,<2.15",
        "torch_complex",
        "tqdm",
        "transformers>=5.17",
        "typeguard",
    ],
    extras_require={
        "dev": pins("dev"),
        "demo": pins("demo"),
        "serve": pins("serve"),
        "qlora": pins("qlora"),
        # for `speechllm.bin.benchmark decode --against faster-whisper`
        "benchmark": ["faster-whisper==1.2.1"],
    },
    entry_points={"console_scripts": ["speechllm = speechllm.cli:console_main"]},
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)
