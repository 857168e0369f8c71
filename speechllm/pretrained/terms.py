"""Consent to the terms of use of weights that a package index serves.

The hub has its own consent for such models (they are gated). Packages have none, so a
user is asked once: the answer is remembered in the cache.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from speechllm.utils.errors import UserError
from speechllm.utils.io import write_json

VARIABLE = "SPEECHLLM_ACCEPT_TERMS"
RECORD = "accepted_terms.json"


@dataclass(frozen=True)
class Terms:
    """Terms of use.

    Attributes:
        key: short name, for options and the record.
        name: full name.
        url: where to read them.
    """

    key: str
    name: str
    url: str


GEMMA = Terms("gemma", "Gemma Terms of Use", "https://ai.google.dev/gemma/terms")
#: All terms that a package needs, by key.
KNOWN = {terms.key: terms for terms in (GEMMA,)}


def require_consent(terms: Terms, model: str, cache: Path, hub_reason: str) -> None:
    """Return if the user has accepted the terms of a model; ask on a terminal.

    Args:
        terms: of the model.
        model: its name, for the message.
        cache: folder of the record.
        hub_reason: why the hub does not give the model, for the message.

    Raises:
        UserError: the terms are not accepted; tells how to accept them.
    """
    if terms.key in _read_record(cache):
        return
    accepted = re.split(r"[\s,]+", os.environ.get(VARIABLE, ""))
    if terms.key in accepted or _ask(terms, model):
        accept(terms, cache)
        return
    raise UserError(
        f"cannot get the model {model}: hub: {hub_reason}; a package has it, under the "
        f"{terms.name} ({terms.url}), which are not accepted yet: read them, then set "
        f"{VARIABLE}={terms.key} or run `python -m speechllm.bin.fetch_models "
        f"--accept_terms {terms.key} {model}`"
    )


def accept(terms: Terms, cache: Path) -> None:
    """Record in the cache that the user accepts the terms."""
    record = _read_record(cache)
    now = datetime.datetime.now(datetime.UTC)
    record[terms.key] = {
        "name": terms.name,
        "url": terms.url,
        "accepted": now.isoformat(timespec="seconds"),
    }
    cache.mkdir(parents=True, exist_ok=True)
    write_json(cache / RECORD, record)


def _read_record(cache: Path) -> dict:
    """Return the accepted terms by key; empty if there is no readable record."""
    try:
        record = json.loads((cache / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _ask(terms: Terms, model: str) -> bool:
    """Ask for consent if a user is at the terminal."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(
        f"The weights of {model} are subject to the {terms.name}:\n{terms.url}\n"
        "Do you accept them? [yes/no] ",
        end="",
        file=sys.stderr,
        flush=True,
    )
    return sys.stdin.readline().strip().lower() in ("y", "yes")
