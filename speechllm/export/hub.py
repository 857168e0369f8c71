"""Model cards and uploads to the Hugging Face hub (stage 15)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from speechllm.evaluation.report import git_hash, results_table
from speechllm.evaluation.tables import METRICS, TASKS
from speechllm.export.pack import model_files
from speechllm.inference.generation_config import GENERATION_FILE, read_settings
from speechllm.pretrained.push import hub_api, push_folder
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open, read_yaml

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

#: A card with this line is replaced; a card without it is the user's and is kept.
CARD_MARK = "<!-- written by speechllm; delete this line to keep your changes -->"

#: metric -> the hub's name of its task
HUB_TASKS = dict.fromkeys(("wer", "cer"), "automatic-speech-recognition")
HUB_TASKS |= dict.fromkeys(("bleu", "chrf", "ter", "comet"), "translation")


def base_models(config: dict) -> list[str]:
    """Return the hub ids of the pretrained models in a ``config.yaml``."""
    names = [
        (config.get(part) or {}).get("model") for part in ("encoder_conf", "llm_conf")
    ]
    return [name for name in names if isinstance(name, str) and name.count("/") == 1]


def eval_results(rows: list[dict]) -> list[EvalResult]:
    """Return rows of ``RESULTS.json`` as the hub's results, for ``model-index``."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=HUB_TASKS[row["metric"]],
            dataset_type=row["set"],
            dataset_name=row["set"],
            dataset_config=f"{row['language']}-{row['target_language']}"
            if row["task"] != "asr"
            else row["language"],
            metric_type=row["metric"],
            metric_name=f"{METRICS[row['metric']]} ({row['decode']})",
            metric_value=row["value"],
        )
        for row in rows
        if row["metric"] in HUB_TASKS
    ]


def model_card(
    model_dir: str | Path, rows: list[dict], repo_id: str, license: str | None = None
) -> str:
    """Return the text of a model card: metadata, usage and scores.

    Args:
        model_dir: exported model, for its ``config.yaml``.
        rows: this system's rows of ``RESULTS.json``; may be empty.
        repo_id: ``<user>/<name>`` on the hub.
        license: the hub's name of the licence of the weights, such as ``apache-2.0``.

    Raises:
        UserError: ``config.yaml`` is missing or not YAML.
    """
    from huggingface_hub import ModelCardData

    bases = base_models(read_yaml(Path(model_dir) / "config.yaml"))
    languages = {row["language"] for row in rows}
    languages |= {row["target_language"] for row in rows}
    tags = ["speechllm", "speech-recognition"]
    if any(row["task"] != "asr" for row in rows):
        tags.append("speech-translation")
    data = ModelCardData(
        base_model=bases or None,
        eval_results=eval_results(rows) or None,
        language=sorted(languages) or None,
        library_name="speechllm",
        license=license,
        model_name=repo_id.split("/")[-1],
        pipeline_tag="automatic-speech-recognition",
        tags=tags,
    )
    example = next((row for row in rows if row["task"] == "asr"), None)
    example = example or next(iter(rows), None)
    call = ""
    if example:
        call = f', task="{example["task"]}", language="{example["language"]}"'
        if example["task"] != "asr":
            call += f', target_language="{example["target_language"]}"'
    parts = [
        f"---\n{data}\n---",
        CARD_MARK,
        f"# {repo_id.split('/')[-1]}\n",
        "A large language model for speech, trained with `speechllm`"
        + (f" on {' and '.join(f'`{name}`' for name in bases)}" if bases else "")
        + f" (speechllm `{git_hash()}`).\n",
        "```python\n"
        "from huggingface_hub import snapshot_download\n"
        "from speechllm import SpeechToText\n\n"
        f'model = SpeechToText.from_pretrained(snapshot_download("{repo_id}"))\n'
        f'print(model.transcribe(["speech.wav"]{call})[0].text)\n'
        "```\n",
        f"In a shell: `speechllm transcribe --model {repo_id} speech.wav`.\n",
        *settings_note(Path(model_dir)),
    ]
    for task in sorted({row["task"] for row in rows}):
        parts += [f"## {TASKS.get(task, task)}\n", results_table(rows, task)]
    return "\n".join(parts)


def settings_note(folder: Path) -> list[str]:
    """Return a paragraph about the decoding settings in a model folder, if any."""
    found = read_settings(None, folder)
    if not found:
        return []
    listed = ", ".join(f"`{name}: {value}`" for name, value in found.items())
    return [f"Both decode as for the scores below, by `{GENERATION_FILE}`: {listed}.\n"]


def read_results(path: str | Path, system: str | None = None) -> list[dict]:
    """Read the rows of a ``RESULTS.json``, of one system if one is given.

    Raises:
        UserError: the file is missing, is not a list of rows, or lacks the system.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; make it with speechllm.bin.report")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        found = [row for row in rows if system in (None, row["system"])]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a RESULTS.json of speechllm") from None
    if not found:
        raise UserError(f"{path}: no scores of the system {system}")
    return found


def write_model_card(
    model_dir: str | Path, rows: list[dict], repo_id: str, license: str | None = None
) -> Path:
    """Write ``README.md`` into a model folder, unless the user wrote one there."""
    path = Path(model_dir) / "README.md"
    if not path.exists() or CARD_MARK in path.read_text(encoding="utf-8"):
        with atomic_open(path, "w") as stream:
            stream.write(model_card(model_dir, rows, repo_id, license))
    return path


def upload(
    model_dir: str | Path,
    repo_id: str,
    rows: list[dict] = (),
    private: bool = False,
    license: str | None = None,
    api=None,
) -> str:
    """Upload an exported model and its card to the Hugging Face hub.

    Args:
        model_dir: exported model; ``README.md`` is written if it has none.
        rows, license: for the card.
        repo_id, private, api: as for :func:`push_folder`.

    Returns:
        The URL of the commit.

    Raises:
        UserError: as :func:`push_folder`, or the folder is not a model.
    """
    model_files(model_dir)
    api = hub_api(repo_id, api)  # before the card is written
    write_model_card(model_dir, rows, repo_id, license)
    return push_folder(model_dir, repo_id, private, api)
