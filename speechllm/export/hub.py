"""Model cards and uploads to the Hugging Face hub (stage 15)."""

from __future__ import annotations

import json
from pathlib import Path

from speechllm.evaluation.report import git_hash, results_table
from speechllm.evaluation.tables import TASKS
from speechllm.export.pack import model_files
from speechllm.inference.generation_config import GENERATION_FILE, read_settings
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open, read_yaml

#: A card with this line is replaced; a card without it is the user's and is kept.
CARD_MARK = "<!-- written by speechllm; delete this line to keep your changes -->"


def base_models(config: dict) -> list[str]:
    """Return the hub ids of the pretrained models in a ``config.yaml``."""
    names = [
        (config.get(part) or {}).get("model") for part in ("encoder_conf", "llm_conf")
    ]
    return [name for name in names if isinstance(name, str) and name.count("/") == 1]


def model_card(model_dir: str | Path, rows: list[dict], repo_id: str) -> str:
    """Return the text of a model card: metadata, usage and scores.

    Args:
        model_dir: exported model, for its ``config.yaml``.
        rows: this system's rows of ``RESULTS.json``; may be empty.
        repo_id: ``<user>/<name>`` on the hub.

    Raises:
        UserError: ``config.yaml`` is missing or not YAML.
    """
    import yaml

    bases = base_models(read_yaml(Path(model_dir) / "config.yaml"))
    languages = {row["language"] for row in rows}
    languages |= {row["target_language"] for row in rows}
    head = {
        "library_name": "speechllm",
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["speechllm", "speech-recognition"],
    }
    if any(row["task"] != "asr" for row in rows):
        head["tags"].append("speech-translation")
    if languages:
        head["language"] = sorted(languages)
    if bases:
        head["base_model"] = bases
    example = next((row for row in rows if row["task"] == "asr"), None)
    example = example or next(iter(rows), None)
    call = ""
    if example:
        call = f', task="{example["task"]}", language="{example["language"]}"'
        if example["task"] != "asr":
            call += f', target_language="{example["target_language"]}"'
    parts = [
        "---\n" + yaml.safe_dump(head, sort_keys=False) + "---",
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


def write_model_card(model_dir: str | Path, rows: list[dict], repo_id: str) -> Path:
    """Write ``README.md`` into a model folder, unless the user wrote one there."""
    path = Path(model_dir) / "README.md"
    if not path.exists() or CARD_MARK in path.read_text(encoding="utf-8"):
        with atomic_open(path, "w") as stream:
            stream.write(model_card(model_dir, rows, repo_id))
    return path


def upload(
    model_dir: str | Path,
    repo_id: str,
    rows: list[dict] = (),
    private: bool = False,
    api=None,
) -> str:
    """Upload an exported model and its card to the Hugging Face hub.

    The token is that of ``HF_TOKEN`` or ``hf auth login``; it is neither stored nor
    printed here.

    Args:
        model_dir: exported model; ``README.md`` is written if it has none.
        repo_id: ``<user or organisation>/<name>``; created if it is missing.
        rows: scores for the card.
        private: make a new repository private.
        api: an ``huggingface_hub.HfApi``; created if None.

    Returns:
        The URL of the commit.

    Raises:
        UserError: no token, an invalid name, or the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if repo_id.count("/") != 1:
        raise UserError(f"repo_id '{repo_id}': expected <user or organisation>/<name>")
    model_files(model_dir)
    if api is None:
        if not get_token():
            raise UserError(
                "no Hugging Face token; run `hf auth login` or set HF_TOKEN"
            )
        api = HfApi()
    write_model_card(model_dir, rows, repo_id)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=str(model_dir),
            commit_message="Upload a speechllm model",
            ignore_patterns=[".*", "**/.*"],
        )
    except HFValidationError as error:
        raise UserError(f"repo_id '{repo_id}': {error}") from None
    except HfHubHTTPError as error:
        raise UserError(f"{repo_id}: the hub refused the upload: {error}") from None
    except Exception as error:
        if is_connection_error(error):
            raise UserError(
                f"{repo_id}: the hub cannot be reached ({error}); "
                "run the same command again when there is a connection"
            ) from None
        raise
    return str(commit)


def is_connection_error(error: Exception) -> bool:
    """Return True for a network error of any HTTP client that the hub package uses."""
    return isinstance(error, (ConnectionError, TimeoutError)) or any(
        kind.__module__.split(".")[0] in ("httpx", "requests", "httpcore")
        for kind in type(error).__mro__
    )
