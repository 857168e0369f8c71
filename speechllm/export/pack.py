"""A trained model as one zip with a manifest, or on the Hugging Face hub with a card.

The zip holds the files of an exported model folder, files named besides (results,
curves), and ``meta.yaml`` as ESPnet's pack writes it: what is in it (here with size and
SHA-256) and the environment it was made in. :func:`unpack` takes out only what the
manifest names, and only where size and checksum agree.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import zipfile
from datetime import datetime
from pathlib import Path, PurePosixPath

from speechllm.evaluation.report import TASKS, git_hash, package_version, results_table
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_directory, atomic_open

MANIFEST = "meta.yaml"

#: Without these a folder is no exported model.
REQUIRED = ("config.yaml", "model.safetensors")

#: A card with this line is ours and written anew; take it out to keep your own text.
CARD_MARK = "<!-- written by speechllm; delete this line to keep your changes -->"


# ---------------------------------------------------------------- zip


def model_files(model_dir: str | Path) -> dict[str, Path]:
    """The files of an exported model by their name in the archive, sorted.

    Hidden files are left out.

    Raises:
        UserError: no folder, or not an exported model.
    """
    model_dir = Path(model_dir)
    for name in REQUIRED:
        if not (model_dir / name).is_file():
            raise UserError(f"{model_dir}: not an exported model, {name} is missing")
    files = {}
    for path in sorted(model_dir.rglob("*")):
        name = path.relative_to(model_dir)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            files[name.as_posix()] = path
    return files


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def pack(
    model_dir: str | Path,
    output: str | Path,
    include: list[str | Path] = (),
    force: bool = False,
) -> dict:
    """Write an exported model folder and its manifest into a zip.

    Args:
        model_dir: what ``speechllm.bin.export_model`` wrote.
        output: the zip; it is there whole or not at all.
        include: further files, put at the top of the archive under their own names.
        force: replace a zip that is there.

    Returns:
        the manifest.

    Raises:
        UserError: the zip is there already, a file is missing, or two files have the
            same name in the archive.
    """
    import yaml

    output = Path(output)
    if output.exists() and not force:
        raise UserError(f"{output} is there already; --force replaces it")
    files = model_files(model_dir)
    for path in map(Path, include):
        if not path.is_file():
            raise UserError(f"{path}: no such file to include")
        if path.name in files:
            raise UserError(f"{path}: the archive already has a file {path.name}")
        files[path.name] = path
    if MANIFEST in files:
        raise UserError(f"{files[MANIFEST]}: this name is kept for the manifest")
    manifest = {
        "files": {
            name: {"size": path.stat().st_size, "sha256": sha256(path)}
            for name, path in files.items()
        },
        "timestamp": datetime.now().timestamp(),
        "python": platform.python_version(),
        "torch": package_version("torch"),
        "espnet": package_version("espnet"),
        "transformers": package_version("transformers"),
        "speechllm": git_hash(),
    }
    with (
        atomic_open(output, "wb") as stream,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        archive.writestr(MANIFEST, yaml.safe_dump(manifest, sort_keys=False))
        for name, path in files.items():
            weights = path.suffix == ".safetensors"  # noise: not worth compressing
            kind = zipfile.ZIP_STORED if weights else zipfile.ZIP_DEFLATED
            archive.write(path, name, compress_type=kind)
    return manifest


def unpack(archive: str | Path, output_dir: str | Path, force: bool = False) -> Path:
    """Take a packed model apart again, checking every file.

    Args:
        archive: a zip made by :func:`pack`.
        output_dir: the folder to make; it is there whole or not at all.
        force: replace a folder that is there.

    Raises:
        UserError: not such a zip, a name that leads out of the folder, a file that the
            manifest lacks or that differs from it, or a folder that is there already.
    """
    import yaml

    archive, output_dir = Path(archive), Path(output_dir)
    if not archive.is_file():
        raise UserError(f"{archive}: no such file")
    if output_dir.exists() and not force:
        raise UserError(f"{output_dir} is there already; --force replaces it")
    try:
        with zipfile.ZipFile(archive) as packed:
            entries = {entry.filename: entry for entry in packed.infolist()}
            if MANIFEST not in entries:
                raise UserError(f"{archive}: no {MANIFEST}, not a packed model")
            if len(entries) != len(packed.infolist()):
                raise UserError(f"{archive}: a name stands in it twice")
            manifest = yaml.safe_load(packed.read(MANIFEST))
            if not isinstance(manifest, dict) or not isinstance(
                manifest.get("files"), dict
            ):
                raise UserError(f"{archive}: its {MANIFEST} lists no files")
            listed = manifest["files"]
            for name in sorted(entries.keys() | listed.keys()):
                require_safe_name(archive, name)
                if name != MANIFEST and name not in listed:
                    raise UserError(f"{archive}: {name} is not in its {MANIFEST}")
                if name not in entries:
                    raise UserError(f"{archive}: {name} of its {MANIFEST} is missing")
            with atomic_directory(output_dir) as temporary:
                for name, entry in entries.items():
                    target = temporary / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    limit = listed[name]["size"] if name in listed else entry.file_size
                    if entry.file_size != limit:
                        raise UserError(f"{archive}: {name} has not its listed size")
                    with packed.open(entry) as source, open(target, "wb") as stream:
                        shutil.copyfileobj(source, stream, 1 << 20)
                    if name in listed and sha256(target) != listed[name]["sha256"]:
                        raise UserError(f"{archive}: {name} has a wrong checksum")
    except (zipfile.BadZipFile, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{archive}: damaged ({error}); fetch it again") from None
    return output_dir


def require_safe_name(archive: Path, name: str) -> None:
    """Refuse a name in an archive that does not stay below the target folder."""
    parts = PurePosixPath(name).parts
    unsafe = not isinstance(name, str) or not parts or name.endswith("/")
    if unsafe or name.startswith("/") or ".." in parts or "\\" in name or ":" in name:
        raise UserError(f"{archive}: unsafe file name {name!r}; do not trust it")


# ---------------------------------------------------------------- hub


def base_models(config: dict) -> list[str]:
    """Hub ids of the pretrained parts that ``config.yaml`` names."""
    names = [
        (config.get(part) or {}).get("model") for part in ("encoder_conf", "llm_conf")
    ]
    return [name for name in names if isinstance(name, str) and name.count("/") == 1]


def model_card(model_dir: str | Path, rows: list[dict], repo_id: str) -> str:
    """The text of a model card: metadata, how to use the model, and its scores.

    Args:
        model_dir: exported model, for its ``config.yaml``.
        rows: this system's rows of ``RESULTS.json``; may be empty.
        repo_id: ``<user>/<name>`` on the hub.
    """
    import yaml

    path = Path(model_dir) / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML ({error})") from None
    bases = base_models(config if isinstance(config, dict) else {})
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
        "A large language model that hears, trained with `speechllm`"
        + (f" on {' and '.join(f'`{name}`' for name in bases)}" if bases else "")
        + f" (speechllm `{git_hash()}`).\n",
        "```python\n"
        "from huggingface_hub import snapshot_download\n"
        "from speechllm import SpeechToText\n\n"
        f'model = SpeechToText.from_pretrained(snapshot_download("{repo_id}"))\n'
        f'print(model.transcribe(["speech.wav"]{call})[0].text)\n'
        "```\n",
    ]
    for task in sorted({row["task"] for row in rows}):
        parts += [f"## {TASKS.get(task, task)}\n", results_table(rows, task)]
    return "\n".join(parts)


def read_results(path: str | Path, system: str | None = None) -> list[dict]:
    """Rows of a ``RESULTS.json``, of one system where one is named.

    Raises:
        UserError: the file is missing or no list of rows, or lacks the system.
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
    """Write ``README.md`` into a model folder, unless somebody else wrote one there."""
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
    """Put an exported model and its card into a repository on the Hugging Face hub.

    The token is the one of ``HF_TOKEN`` or ``hf auth login``; it is neither read into
    a file nor printed here.

    Args:
        model_dir: exported model; its ``README.md`` is made if it has none.
        repo_id: ``<user or organisation>/<name>``; made when it is missing.
        rows: scores for the card.
        private: make a new repository private.
        api: an ``huggingface_hub.HfApi``; made here when None.

    Returns:
        the address of the commit.

    Raises:
        UserError: no token, a name that is none, or the hub refuses or is not reached.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if repo_id.count("/") != 1:
        raise UserError(f"repo_id '{repo_id}': want <user or organisation>/<name>")
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
                f"{repo_id}: the hub is not reached ({error}); "
                "the same command uploads once there is a connection"
            ) from None
        raise
    return str(commit)


def is_connection_error(error: Exception) -> bool:
    """Whether the network failed, whichever HTTP client the hub's package uses."""
    return isinstance(error, (ConnectionError, TimeoutError)) or any(
        kind.__module__.split(".")[0] in ("httpx", "requests", "httpcore")
        for kind in type(error).__mro__
    )
