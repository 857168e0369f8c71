"""Download of models from the Hugging Face hub, with short time-outs.

Downloads stay in the cache of ``huggingface_hub`` (``HF_HOME``), which all programs of
the user share. Models that their owner withdrew are downloaded from their copies.
"""

from __future__ import annotations

import errno
import re
import threading
from contextlib import suppress
from pathlib import Path

from speechllm.pretrained.model_folder import missing_parts
from speechllm.utils.errors import UserError

COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
#: Models withdrawn from the hub, and the copies of them there, by an author of Nue-ASR.
COPIES = {
    "rinna/nue-asr": "yky-h/nue-asr",
    "rinna/japanese-hubert-base": "yky-h/japanese-hubert-base",
    "rinna/japanese-hubert-large": "yky-h/japanese-hubert-large",
}
#: Withdrawn models without a copy, and models to use in their place.
SUBSTITUTES = {
    "rinna/japanese-gpt-neox-3.6b": "rinna/bilingual-gpt-neox-4b, or yky-h/nue-asr, "
    "whose LLM was fine-tuned from it",
}
_HUB_SECONDS = 5  # time-out of a request
_TEXT_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
_INPUT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "preprocessor_config.json",
)


def snapshot_commit(folder: str | Path) -> str | None:
    """Return the commit of a folder in the hub's cache; None for other folders."""
    folder = Path(folder)
    is_snapshot = folder.parent.name == "snapshots" and COMMIT.fullmatch(folder.name)
    return folder.name if is_snapshot else None


def names_of(name: str) -> list[str]:
    """Return the hub ids of a model: the given one, then those of its copies."""
    former = [old for old, new in COPIES.items() if new == name]
    return [name, *former, *([COPIES[name]] if name in COPIES else [])]


def available_name(name: str) -> str:
    """Return the hub id by which a model can be downloaded."""
    return COPIES.get(name, name)


def cached_snapshot(name: str, revision: str | None = None) -> Path | None:
    """Return a complete copy of a model in the hub's cache, without network access.

    Args:
        name: hub id; other ids of the same model are searched, too.
        revision: commit; the cached state of the main branch if None.
    """
    for alias in names_of(name):
        if folder := _cached_snapshot(alias, revision):
            return folder
    return None


def _cached_snapshot(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    if not isinstance(config, str):  # None, or a marker that the hub lacks the file
        return None
    folder = Path(config).parent
    has_input = any((folder / file).is_file() for file in _INPUT_FILES)
    return folder if has_input and not missing_parts(folder) else None


def download(name: str, revision: str | None = None) -> tuple[Path | None, str]:
    """Download a model from the hub.

    Args:
        name: hub id.
        revision: commit; the newest if None, and if a copy of a withdrawn model lacks
            it.

    Returns:
        The folder and ``""``, or None and the reason why it is not available.

    Raises:
        UserError: the hub has the model, but the download failed.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    if constants.HF_HUB_OFFLINE:
        return None, "HF_HUB_OFFLINE is set" + _substitute(name)
    source = available_name(name)
    files = _list_files(source, revision)
    if isinstance(files, RevisionNotFoundError) and source != name:
        revision = None
        files = _list_files(source, revision)
    if isinstance(files, Exception):
        return None, refusal(name, files)
    # weights last: a copy with weights is complete
    safe = any(re.fullmatch(r"model(-.*)?\.safetensors", file) for file in files)
    stem, suffix = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    weights = [f"{stem}.{suffix}", f"{stem}-*-of-*.{suffix}"]
    try:
        for patterns in (_TEXT_FILES, weights):
            folder = Path(
                snapshot_download(
                    source,
                    revision=revision,
                    allow_patterns=patterns,
                    etag_timeout=_HUB_SECONDS,
                )
            )
    except Exception as error:  # depends on the HTTP library
        gated = isinstance(error, GatedRepoError)
        if gated or _status(_response_error(error)) in (401, 403, 404):
            return None, refusal(name, error)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES):
            raise
        raise UserError(
            f"the download of {name} from {constants.ENDPOINT} failed: "
            f"{_first_line(error)}; run the same command again to resume it, or set "
            "HF_HUB_OFFLINE=1 to skip the hub"
        ) from error
    if missing := missing_parts(folder):
        return None, f"{name} has no {' and '.join(missing)} on the hub"
    return folder, ""


def download_all(name: str, revision: str | None = None) -> Path:
    """Download every file of a repository, such as a model folder of stage 15.

    Args:
        name: hub id.
        revision: commit; the newest if None.

    Raises:
        UserError: it is not on the hub, the hub cannot be reached, which is found
            within seconds, or the download failed.
    """
    from huggingface_hub import constants, snapshot_download

    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise UserError(f"{name}: no such folder, and the name is not a hub id")
    source = available_name(name)
    cached: Path | None = None
    with suppress(Exception):  # depends on the version; nothing in the cache
        cached = Path(
            snapshot_download(source, revision=revision, local_files_only=True)
        )
    if constants.HF_HUB_OFFLINE:
        if cached is None:
            raise UserError(
                f"{name}: no such folder, and the hub is not used, since "
                "HF_HUB_OFFLINE is set"
            )
        return cached
    error = _list_files(source, revision)
    if not isinstance(error, Exception):
        try:
            return Path(snapshot_download(source, revision=revision))
        except Exception as problem:  # depends on the HTTP library
            error = problem
    if cached is not None:
        return cached
    raise UserError(f"{name}: no such folder, and of the hub: {refusal(name, error)}")


def _list_files(name: str, revision: str | None) -> list[str] | Exception:
    """Return the names of a model's files on the hub, or the error of the request.

    The request runs in a thread, because the time-out does not cover DNS look-ups.
    """
    response: list[list[str] | Exception] = []

    def request() -> None:
        from huggingface_hub import HfApi

        try:
            info = HfApi().model_info(name, revision=revision, timeout=_HUB_SECONDS)
            response.append([sibling.rfilename for sibling in info.siblings or []])
        except Exception as error:
            response.append(error)

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(_HUB_SECONDS + 1)
    return response[0] if response else TimeoutError(f"{_HUB_SECONDS} s")


def refusal(name: str, error: BaseException) -> str:
    """Return the reason why the hub does not give a model, and the remedy.

    Args:
        name: hub id that was requested.
        error: of ``huggingface_hub``.
    """
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    source = available_name(name)
    error = _response_error(error)
    status = _status(error)
    if isinstance(error, GatedRepoError):
        reason = (
            f"the model is gated: log in at https://huggingface.co/{source}, accept "
            "its licence there, then run `hf auth login` once or set HF_TOKEN"
        )
    elif isinstance(error, RevisionNotFoundError):
        reason = "it does not have the commit that is requested"
    elif isinstance(error, DisabledRepoError):
        reason = "access to it is disabled"
    elif status == 401 and "Invalid credentials" in str(error):
        reason = "the token is not valid: run `hf auth login` again or correct HF_TOKEN"
    elif isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        reason = (
            "no such model, or a private one: check the name at "
            "https://huggingface.co/models, or log in with `hf auth login`"
        )
    elif status == 403:
        reason = (
            "the token may not read it: give it the permission at "
            "https://huggingface.co/settings/tokens"
        )
    elif isinstance(error, TimeoutError):
        reason = f"no response within {error}; is this machine offline?"
    else:
        reason = f"cannot be reached ({_first_line(error)}); is this machine offline?"
    if status:
        reason = f"{status}, {reason}"
    reason += _substitute(name)
    if source != name:
        reason = f"it was withdrawn, and of its copy {source}: {reason}"
    return reason


def _substitute(name: str) -> str:
    """Return the advice for a withdrawn model without a copy, to be appended."""
    if name not in SUBSTITUTES:
        return ""
    return f"; it was withdrawn; use {SUBSTITUTES[name]}"


def _response_error(error: BaseException) -> BaseException:
    """Return the error with the hub's response, of which ``error`` is a consequence."""
    cause: BaseException | None = error
    while cause is not None:
        if _status(cause):
            return cause
        cause = cause.__cause__ or cause.__context__
    return error


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an error, or None."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
