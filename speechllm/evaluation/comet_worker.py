"""Run by the Python of COMET's own environment, ``python -I comet_worker.py``.

It imports nothing of ours. Its first argument is a JSON file ``{"model", "segments":
[{"src", "mt", "ref"}]}``, its second the JSON file to write: ``{"scores", "version"}``,
or ``{"error"}`` where the model cannot be loaded.
"""

import json
import os
import sys
from importlib.metadata import PackageNotFoundError, version


def load(name):
    """A model by its path (a ``.ckpt``, or the folder around ``checkpoints/``) or id."""
    import comet

    path = name
    if os.path.isdir(name):
        path = os.path.join(name, "checkpoints", "model.ckpt")
    elif not os.path.exists(name):
        path = comet.download_model(name)
    return comet.load_from_checkpoint(path)


def package_version():
    try:
        return version("unbabel-comet")
    except PackageNotFoundError:
        return "unknown"


def main(request, answer):
    with open(request, encoding="utf-8") as stream:
        asked = json.load(stream)
    try:
        model = load(asked["model"])
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        result = {"error": lines[0]}
    else:
        import torch

        output = model.predict(
            asked["segments"],
            batch_size=16,
            gpus=int(torch.cuda.is_available()),
            progress_bar=False,
        )
        scores = [float(score) for score in output["scores"]]
        result = {"scores": scores, "version": package_version()}
    with open(answer, "w", encoding="utf-8") as stream:
        json.dump(result, stream)


if __name__ == "__main__":
    main(*sys.argv[1:])
