"""Download of models from the Hugging Face hub, with short time-outs.

Downloads stay in the cache of ``huggingface_hub`` (``HF_HOME``), which all programs of
the user share.
"""

from __future__ import annotations

import errno
import re
import threading
from pathlib import Path

from speechllm.pretrained.model_folder import missing_parts
from speechllm.utils.errors import UserError

COMMIT = re.compile(r"[0-9a-f]{40}")
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


def cached_snapshot(name: str, revision: str | None = None) -> Path | None:
    """Return a complete copy of a model in the hub's cache, without network access.

    Args:
        name: hub id.
        revision: commit; the cached state of the main branch if None.
    """
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
        revision: commit; the newest if None.

    Returns:
        The folder and ``""``, or None and the reason why it is not available.

    Raises:
        UserError: the hub has the model, but the download failed.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError

    if constants.HF_HUB_OFFLINE:
        return None, "HF_HUB_OFFLINE is set"
    files = _list_files(name, revision)
    if isinstance(files, str):
        return None, files
    # weights last: a copy with weights is complete
    safe = any(re.fullmatch(r"model(-.*)?\.safetensors", file) for file in files)
    stem, suffix = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    weights = [f"{stem}.{suffix}", f"{stem}-*-of-*.{suffix}"]
    try:
        for patterns in (_TEXT_FILES, weights):
            folder = Path(
                snapshot_download(
                    name,
                    revision=revision,
                    allow_patterns=patterns,
                    etag_timeout=_HUB_SECONDS,
                )
            )
    except GatedRepoError:
        return None, _gated(name)
    except Exception as error:  # depends on the HTTP library
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


def _list_files(name: str, revision: str | None) -> list[str] | str:
    """Return the names of a model's files on the hub, or the reason of a failure.

    The request runs in a thread, because the time-out does not cover DNS look-ups.
    """
    response: list[list[str] | str] = []

    def request() -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import (
            GatedRepoError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        try:
            info = HfApi().model_info(name, revision=revision, timeout=_HUB_SECONDS)
            response.append([sibling.rfilename for sibling in info.siblings or []])
        except GatedRepoError:
            response.append(_gated(name))
        except RepositoryNotFoundError:
            response.append("no such model, or no access without HF_TOKEN")
        except RevisionNotFoundError:
            response.append(f"no commit {revision} of it")
        except Exception as error:
            response.append(f"cannot be reached ({_first_line(error)})")

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(_HUB_SECONDS + 1)
    return response[0] if response else f"no response within {_HUB_SECONDS} s"


def _gated(name: str) -> str:
    """Return instructions for a gated model; huggingface_hub stores the token."""
    return (
        f"the model is gated: log in at https://huggingface.co/{name}, accept its "
        "licence there, then run `hf auth login` once or set HF_TOKEN"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
