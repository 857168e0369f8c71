"""Decoding settings of a model folder: ``generation_config.yaml``.

The file has the options of a recipe's ``conf/decode.yaml``. It is used wherever no
other config is given, so that a model decodes as in its table of scores. Its head
records a checksum of what was written, which tells whether a user has edited the file.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechllm.decoding.options import (
    DECODING_SCHEMA,
    check_decoding_options,
    search_options,
)
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open, previous_name, read_yaml

GENERATION_FILE = "generation_config.yaml"
LIMITS = frozenset({"tokens_per_second", "extra_tokens"})
#: Options that are not those of one utterance's search, with their defaults.
JOB_DEFAULTS = {"batch_size": None, "dtype": "float32", "engine": "auto"}
_NOT_OF_A_MODEL = ("num_shards", "shard")
_HEADER = """\
# Decoding settings of this model, from the recipe's {config}. They are used by
# `speechllm transcribe`, the Python API and stage 12 where no other config is given.
# Edits stay until the recipe's settings change; then they are kept as
# {name}.previous. Written with SHA-256 {digest}
"""
_DIGEST = re.compile(r"^# .*Written with SHA-256 ([0-9a-f]{64})$", re.MULTILINE)

Config = str | Path | Mapping[str, Any]


def read_settings(config: Config | None, folder: Path) -> dict[str, Any]:
    """Return the decoding options of a config, or without one of the model folder.

    Args:
        config: YAML file, or its content. It replaces the settings of the folder as a
            whole, so that a config means the same for every model.
        folder: of the model; one without ``generation_config.yaml`` has no settings.

    Returns:
        Options of ``DECODING_SCHEMA``, checked.

    Raises:
        UserError: the file is missing or damaged, or an option is unknown or out of
            its range.
    """
    if isinstance(config, Mapping):
        return check_decoding_options(config, "decoding config")
    if config is None:
        config = folder / GENERATION_FILE
        if not os.path.lexists(config):
            return {}
        if config.exists() and not config.is_file():  # reading a FIFO would wait
            raise UserError(f"{config}: not a regular file; remove it")
    return check_decoding_options(read_yaml(config), str(config))


def split_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict]:
    """Split decoding options into those of the search and ``JOB_DEFAULTS``'.

    Chosen limits of the length are not exceeded in a second search
    (``retry_truncated``) unless the settings say so.
    """
    search = {k: v for k, v in settings.items() if k not in JOB_DEFAULTS}
    job = {k: settings.get(k, default) for k, default in JOB_DEFAULTS.items()}
    if search.get("retry_truncated") is None and not LIMITS.isdisjoint(search):
        search["retry_truncated"] = False
    return search, job


def check_search(
    engine: str | None, settings: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    """Check the search options before a model is loaded.

    Args:
        engine: None: that of the settings.
        settings: of :func:`read_settings`.
        given: options that override them.

    Raises:
        UserError: an option is unknown or out of range, or the engine does not have it.
    """
    search, job = split_settings(settings)
    options = search_options({**search, **given})
    if (engine or job["engine"]) == "vllm":
        from speechllm.decoding.vllm_engine import check_vllm_search

        check_vllm_search(options)


def write_generation_config(folder: str | Path, config: str | Path) -> str:
    """Write the decoding options of a recipe into its model folder.

    A file that the user has edited stays as it is while the recipe's options are those
    it was written from. When they have changed, it is kept as ``….previous``.

    Args:
        folder: of the model.
        config: decoding config, such as ``conf/decode.yaml``.

    Returns:
        A message for the user.

    Raises:
        UserError: the config cannot be read, or an option is unknown or out of range.
    """
    import yaml

    options = check_decoding_options(read_yaml(config), str(config))
    options = {k: v for k, v in options.items() if k not in _NOT_OF_A_MODEL}
    ordered = {key: options[key] for key in DECODING_SCHEMA if key in options}
    body = yaml.safe_dump(ordered, sort_keys=False) if ordered else ""
    digest = _sha256(body)
    path = Path(folder) / GENERATION_FILE
    kept = None
    if path.exists():
        before = path.read_text("utf-8", errors="replace")
        found = _DIGEST.search(before)
        edited = found is None or _sha256(before[found.end() + 1 :]) != found[1]
        if edited and found is not None and found[1] == digest:
            return f"{path}: edited, and left as it is"
        if edited:
            kept = previous_name(path)
            shutil.copy2(path, kept)
    head = _HEADER.format(config=Path(config).name, name=path.name, digest=digest)
    with atomic_open(path) as stream:
        stream.write(head + body)
    return f"{path}: written" + (f"; the edited one is kept as {kept}" if kept else "")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
