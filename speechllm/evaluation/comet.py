"""COMET-22 DA (Rei et al. 2022), run in its own Python environment.

``unbabel-comet`` requires older libraries than ours, so it is installed in
``tools/venv-comet`` (by ``tools/install_comet.sh``) and runs in a separate process that
reads and writes JSON. Two environment variables configure it:

* ``SPEECHLLM_COMET_MODEL``: another model, by hub id or as a local folder or ``.ckpt``
  file; ``none`` disables COMET.
* ``SPEECHLLM_COMET_PYTHON``: the Python of another environment.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from speechllm.utils.errors import UserError

DEFAULT_MODEL = "Unbabel/wmt22-comet-da"
WORKER = Path(__file__).with_name("comet_worker.py")
INSTALLER = "tools/install_comet.sh"


def comet_model() -> str | None:
    """Return the model to score with, or None if COMET is disabled."""
    name = os.environ.get("SPEECHLLM_COMET_MODEL") or DEFAULT_MODEL
    return None if name == "none" else name


def comet_python() -> Path | None:
    """Return the Python of COMET's environment, or None if it is not installed.

    Raises:
        UserError: the file in ``SPEECHLLM_COMET_PYTHON`` does not exist.
    """
    if given := os.environ.get("SPEECHLLM_COMET_PYTHON"):
        if not Path(given).is_file():
            raise UserError(f"SPEECHLLM_COMET_PYTHON={given}: no such file")
        return Path(given)
    python = WORKER.parents[2] / "tools" / "venv-comet" / "bin" / "python"
    return python if python.is_file() else None


def comet_scores(
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[str],
    model: str,
    python: Path,
) -> tuple[list[float], str]:
    """Return COMET of each sentence, about 0 (useless) to 1 (perfect).

    Returns:
        The scores, and the signature: model and version.

    Raises:
        UserError: the environment or the model cannot be loaded, scoring fails, or the
            result is not one finite number per sentence.
    """
    segments = [
        {"src": source, "mt": hypothesis, "ref": reference}
        for source, hypothesis, reference in zip(
            sources, hypotheses, references, strict=True
        )
    ]
    with tempfile.TemporaryDirectory(prefix="speechllm-comet-") as folder:
        request, response = Path(folder) / "request.json", Path(folder) / "result.json"
        request.write_text(json.dumps({"model": model, "segments": segments}), "utf-8")
        # -I (isolated): our PYTHONPATH and working folder must not shadow its modules
        done = subprocess.run(
            [python, "-I", WORKER, request, response],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not response.exists():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(
                f"COMET failed in {python} (exit status {done.returncode}): {last}; "
                f"remove its environment and run {INSTALLER}, or set "
                "SPEECHLLM_COMET_MODEL=none to score without it"
            )
        result = json.loads(response.read_text("utf-8"))
    if "error" in result:
        raise UserError(
            f"the COMET model {model} cannot be loaded: {result['error']}; download it "
            "(and its encoder) on a machine with access to the hub, set "
            "SPEECHLLM_COMET_MODEL to a folder with checkpoints/model.ckpt and "
            "hparams.yaml, or set it to none to score without COMET"
        )
    scores = result["scores"]
    if len(scores) != len(segments) or not all(map(math.isfinite, scores)):
        raise UserError(
            f"COMET returned {len(scores)} scores for {len(segments)} sentences, or "
            "some that are not finite; nothing is scored with it"
        )
    return scores, f"model:{model}|scale:100|version:{result['version']}"
