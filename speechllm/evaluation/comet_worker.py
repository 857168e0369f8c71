"""COMET worker, run as ``python -I comet_worker.py`` in COMET's own environment.

It imports nothing from this project. Its first argument is a JSON file ``{"model",
"segments": [{"src", "mt", "ref"}]}``; its second is the JSON file to write:
``{"scores", "version"}``, or ``{"error"}`` if the model cannot be loaded.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def main(request_path: str, result_path: str) -> None:
    with open(request_path, encoding="utf-8") as stream:
        request = json.load(stream)
    result: dict[str, Any]
    try:
        model = load(request["model"])
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        result = {"error": lines[0]}
    else:
        import torch

        output = model.predict(
            request["segments"],
            batch_size=16,
            gpus=int(torch.cuda.is_available()),
            progress_bar=False,
        )
        scores = [float(score) for score in output["scores"]]
        result = {"scores": scores, "version": package_version()}
    with open(result_path, "w", encoding="utf-8") as stream:
        json.dump(result, stream)


def load(name: str) -> Any:
    """Load a model by hub id, ``.ckpt`` file or folder with ``checkpoints/``."""
    import comet

    path = name
    if os.path.isdir(name):
        path = os.path.join(name, "checkpoints", "model.ckpt")
    elif not os.path.exists(name):
        path = comet.download_model(name)
    return comet.load_from_checkpoint(path)


def package_version() -> str:
    try:
        return version("unbabel-comet")
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    main(*sys.argv[1:])
