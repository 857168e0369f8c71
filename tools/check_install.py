"""Print which packages and tools the environment has, and which are missing."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
from pathlib import Path

TOOLS = Path(__file__).parent


def version(package: str) -> str | None:
    """Return the installed version of a package, None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def gpus() -> str | None:
    """Return the names of the GPUs, None if torch finds none."""
    import torch

    if not torch.cuda.is_available():
        return None
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names)


def main() -> int:
    """Print the table; return 1 if a required package is missing, else 0."""
    print(f"Python {platform.python_version()} in {sys.prefix}")
    required = "torch espnet transformers peft accelerate numpy soundfile av soxr "
    required += "kaldiio lhotse sentencepiece jiwer sacrebleu speechllm"
    missing = False
    for package in required.split():
        found = version(package)
        missing |= found is None
        print(f"  {package:<16} {found or 'MISSING: run tools/install.sh'}")
    print("optional")
    extra = "not installed (tools/install.sh --extras {})"
    comet = TOOLS / "venv-comet" / "bin" / "comet-score"
    rows = {
        "GPU": gpus() or "not found by torch; training and decoding run on the CPU",
        "extra dev": version("pytest") or extra.format("dev"),
        "extra demo": version("gradio") or extra.format("demo"),
        "extra serve": version("fastapi") or extra.format("serve"),
        "extra qlora": version("bitsandbytes") or extra.format("qlora"),
        "extra lightning": version("lightning") or extra.format("lightning"),
        "extra deepspeed": version("deepspeed") or extra.format("deepspeed"),
        "COMET": "tools/venv-comet"
        if comet.exists()
        else "not installed (tools/install_comet.sh)",
        "torchaudio": version("torchaudio")
        or "not installed, only ESPnet 202611 requires it",
        "apt-get, dpkg-deb": "found"
        if shutil.which("apt-get") and shutil.which("dpkg-deb")
        else "not found (mini_asterisk downloads the upstream archives instead)",
        "sbatch": shutil.which("sbatch")
        or "not found (required only for cmd_backend=slurm)",
    }
    for name, state in rows.items():
        print(f"  {name:<17} {state}")
    return int(missing)


if __name__ == "__main__":
    sys.exit(main())
