"""Upload of model folders to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from speechllm.pretrained.model_folder import require_no_foreign_links
from speechllm.utils.errors import UserError


def push_folder(
    folder: str | Path, repo_id: str, private: bool = False, api=None
) -> str:
    """Upload a folder to the Hugging Face hub, without its hidden files.

    The token is that of ``HF_TOKEN`` or ``hf auth login``; it is neither stored nor
    printed here.

    Args:
        repo_id: ``<user or organisation>/<name>``; created if it is missing.
        private: make a new repository private.
        api: an ``huggingface_hub.HfApi``; created if None.

    Returns:
        The URL of the commit.

    Raises:
        UserError: no token, an invalid name, links that lead out of the folder, or the
            hub refuses or cannot be reached.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = hub_api(repo_id, api)
    require_no_foreign_links(folder)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=str(folder),
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
                "upload it again when there is a connection"
            ) from None
        raise
    return str(commit)


def hub_api(repo_id: str, api=None):
    """Return an ``HfApi`` for an upload, the given one if there is one.

    Raises:
        UserError: the name of the repository has no user, or there is no token.
    """
    from huggingface_hub import HfApi, get_token

    if repo_id.count("/") != 1:
        raise UserError(f"repo_id '{repo_id}': expected <user or organisation>/<name>")
    if api is None and not get_token():
        raise UserError("no Hugging Face token; run `hf auth login` or set HF_TOKEN")
    return api or HfApi()


def is_connection_error(error: Exception) -> bool:
    """Return True for a network error of any HTTP client that the hub package uses."""
    return isinstance(error, (ConnectionError, TimeoutError)) or any(
        kind.__module__.split(".")[0] in ("httpx", "httpx2", "requests", "httpcore")
        for kind in type(error).__mro__
    )
