"""COMET-22 DA (Rei et al. 2022), from an environment of its own.

``unbabel-comet`` wants older libraries than ours, so it lives in ``tools/venv-comet``
(``tools/install_comet.sh``) and is asked in a process of its own, JSON in and out. Two
variables change what is asked:

* ``SPEECHLLM_COMET_MODEL``: another model, by hub id or as a local folder or ``.ckpt``
  file; ``none`` leaves COMET out.
* ``SPEECHLLM_COMET_PYTHON``: the Python of an environment elsewhere.
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
    """The model to score with, or None where COMET is left out on purpose."""
    name = os.environ.get("SPEECHLLM_COMET_MODEL") or DEFAULT_MODEL
    return None if name == "none" else name


def comet_python() -> Path | None:
    """The Python of COMET's environment, or None where it is not installed.

    Raises:
        UserError: ``SPEECHLLM_COMET_PYTHON`` names no file.
    """
    if given := os.environ.get("SPEECHLLM_COMET_PYTHON"):
        if not Path(given).is_file():
            raise UserError(f"SPEECHLLM_COMET_PYTHON={given}: no such file")
        return Path(given)
    python = WORKER.parents[1] / "tools" / "venv-comet" / "bin" / "python"
    return python if python.is_file() else None


def comet_scores(
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[str],
    model: str,
    python: Path,
) -> tuple[list[float], str]:
    """COMET of each sentence, about 0 (useless) to 1 (perfect).

    Returns:
        The scores, and the signature: model and version.

    Raises:
        UserError: the environment or the model cannot be loaded, scoring failed, or
            it yields other than one finite number a sentence.
    """
    segments = [
        {"src": source, "mt": hypothesis, "ref": reference}
        for source, hypothesis, reference in zip(
            sources, hypotheses, references, strict=True
        )
    ]
    with tempfile.TemporaryDirectory(prefix="speechllm-comet-") as folder:
        request, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        request.write_text(json.dumps({"model": model, "segments": segments}), "utf-8")
        # isolated: neither our PYTHONPATH nor our folder may shadow its modules
        done = subprocess.run(
            [python, "-I", WORKER, request, answer],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not answer.exists():
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(
                f"COMET failed in {python} (exit status {done.returncode}): {last}; "
                f"remove its environment and run {INSTALLER}, or set "
                "SPEECHLLM_COMET_MODEL=none to score without it"
            )
        result = json.loads(answer.read_text("utf-8"))
    if "error" in result:
        raise UserError(
            f"the COMET model {model} cannot be loaded: {result['error']}; fetch it "
            "where the hub can be reached (its encoder too), name a folder that holds "
            "checkpoints/model.ckpt and hparams.yaml in SPEECHLLM_COMET_MODEL, or set "
            "that to none to score without COMET"
        )
    scores = result["scores"]
    if len(scores) != len(segments) or not all(map(math.isfinite, scores)):
        raise UserError(
            f"COMET gave {len(scores)} scores for {len(segments)} sentences, or some "
            "that are no numbers; nothing is scored with it"
        )
    return scores, f"model:{model}|scale:100|version:{result['version']}"
