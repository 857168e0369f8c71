"""Words that begin with "t" in Whisper's tokens.

OpenAI's vocabulary has a token for a space and a ``t``, and longer ones such as
`` the``. transformers' files of Whisper's tokenizer lack the first merge, which makes
that token: they split these words after the space, which OpenAI's models never do.
Models that were fine-tuned with these files do, those of stage 8 among them: fine-tuned
in the other tokens, Whisper-base had no fewer errors (NOTES.md of mini_asterisk).
Decoding is the same in both ways.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIRST_MERGE = ["Ġ", "t"]


def with_first_merge(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a copy of a tokenizer with the merge; itself if it has the merge."""
    from tokenizers import Tokenizer

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    merges = model.get("merges", [])
    if "".join(FIRST_MERGE) not in model["vocab"] or FIRST_MERGE in merges:
        return tokenizer
    model["merges"] = [FIRST_MERGE, *merges]
    merged = copy.deepcopy(tokenizer)
    merged._tokenizer = Tokenizer.from_str(json.dumps(content))
    return merged
