"""Models from the Hugging Face hub and its local cache, without long waits.

What ``huggingface_hub`` fetches stays in its own cache (``HF_HOME``), shared with
every other program of the user.
"""

from __future__ import annotations

import errno
import re
import threading
from pathlib import Path

from speechllm.pretrained.model_folder import missing_parts
from speechllm.utils.errors import UserError

_HUB_SECONDS = 5  # the hub is given that long to answer
_TEXT_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
_INPUT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "preprocessor_config.json",
)


def cached_snapshot(name: str) -> Path | None:
    """The copy of a model in the hub's cache, if it is whole; asks no network."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    if not isinstance(config, str):  # None, or a mark that the hub has no such file
        return None
    folder = Path(config).parent
    has_input = any((folder / file).is_file() for file in _INPUT_FILES)
    return folder if has_input and not missing_parts(folder) else None


def download(name: str) -> tuple[Path | None, str]:
    """Download a model from the hub: (folder, "") or (None, why not).

    Raises:
        UserError: the hub has the model, but the download broke off.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError

    if constants.HF_HUB_OFFLINE:
        return None, "HF_HUB_OFFLINE is set"
    files = _ask_hub(name)
    if isinstance(files, str):
        return None, files
    # weights last: where they are, the rest is too
    safe = any(re.fullmatch(r"model(-.*)?\.safetensors", file) for file in files)
    stem, suffix = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    weights = [f"{stem}.{suffix}", f"{stem}-*-of-*.{suffix}"]
    try:
        for patterns in (_TEXT_FILES, weights):
            folder = Path(
                snapshot_download(
                    name, allow_patterns=patterns, etag_timeout=_HUB_SECONDS
                )
            )
    except GatedRepoError:
        return None, _gated(name)
    except Exception as error:  # whatever the HTTP library of the day raises
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES):
            raise
        raise UserError(
            f"the download of {name} from {constants.ENDPOINT} broke off: "
            f"{_first_line(error)}; the same command goes on from there "
            "(HF_HUB_OFFLINE=1 does without the hub)"
        ) from error
    if missing := missing_parts(folder):
        return None, f"{name} has no {' and '.join(missing)} there"
    return folder, ""


def _ask_hub(name: str) -> list[str] | str:
    """The names of a model's files on the hub, or why they cannot be had.

    In a thread, since a name server that keeps silent heeds no time-out.
    """
    answer: list[list[str] | str] = []

    def ask() -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        try:
            info = HfApi().model_info(name, timeout=_HUB_SECONDS)
            answer.append([sibling.rfilename for sibling in info.siblings or []])
        except GatedRepoError:
            answer.append(_gated(name))
        except RepositoryNotFoundError:
            answer.append("no such model, or no access without HF_TOKEN")
        except Exception as error:
            answer.append(f"cannot be reached ({_first_line(error)})")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_HUB_SECONDS + 1)
    return answer[0] if answer else f"no answer within {_HUB_SECONDS} s"


def _gated(name: str) -> str:
    """What a user does to get a gated model; the token stays with huggingface_hub."""
    return (
        f"it is gated: log in at https://huggingface.co/{name}, accept its licence "
        "there, then run `hf auth login` once or set HF_TOKEN"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
