"""Tokenizers of an LLM's folder, including rinna's, which need sentencepiece itself.

rinna's folders contain ``spiece.model`` and name transformers' ``T5Tokenizer``. From
transformers 5 on this class splits at white space, adds a leading space and lacks
sentencepiece's byte fallback, so that a rare character decodes to
``<0xE9><0xB5><0xBA>``. The class here calls sentencepiece as transformers 4 did in its
"slow" legacy mode, which rinna's models were trained with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from speechllm.utils.errors import UserError, is_out_of_memory, reason_of

VOCABULARIES = (
    "tokenizer.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)


class T5Tokenizer(SentencePieceBackend):
    """``T5Tokenizer(use_fast=False, legacy=True)`` of transformers 4.

    T5's sentinel tokens are left out. The class has transformers' name because the
    files that it saves contain the name, for other programs.
    """

    vocab_files_names = {"vocab_file": "spiece.model"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self,
        vocab_file: str,
        eos_token: str = "</s>",
        unk_token: str = "<unk>",
        pad_token: str = "<pad>",
        **options: Any,
    ):
        options["legacy"] = True
        options["extra_ids"] = 0
        options.setdefault("clean_up_tokenization_spaces", True)  # as in version 4
        options.setdefault("special_tokens_pattern", "eos")
        super().__init__(
            vocab_file=vocab_file,
            eos_token=eos_token,
            unk_token=unk_token,
            pad_token=pad_token,
            **options,
        )

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens to text: decode bytes, keep special tokens as they are."""
        special = set(self.all_special_tokens)
        text, after_special = "", False
        pieces: list[str] = []
        for token in tokens:
            if token not in special:
                pieces.append(token)
                after_special = False
                continue
            text += self.sp_model.decode(pieces)
            text += token if after_special else " " + token
            pieces, after_special = [], True
        return str(text + self.sp_model.decode(pieces)).strip()


def tokens_with_offsets(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the tokens of a text and their places [begin, end) in characters.

    Tokens of single bytes have the place of their character.

    Raises:
        UserError: a slow tokenizer other than sentencepiece's.
    """
    if tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded["input_ids"]), list(encoded["offset_mapping"])
    model = getattr(tokenizer, "sp_model", None)
    if model is None:
        raise UserError(
            f"bridge transcript: {type(tokenizer).__name__} does not tell the places "
            "of its tokens; use an LLM with a fast tokenizer (tokenizer.json)"
        )
    # renamed in sentencepiece 0.2.2; bytes or characters are counted in its offsets,
    # but the surfaces are always parts of the text
    encode = getattr(model, "encode_as_proto", None) or model.encode_as_immutable_proto
    tokens, places = [], []
    end, waiting = 0, 0  # waiting: byte tokens whose character is not complete
    for piece in encode(text).pieces:
        tokens.append(int(piece.id))
        waiting += 1
        if piece.surface:
            begin, end = end, end + len(piece.surface)
            places += [(begin, end)] * waiting
            waiting = 0
    places += [(max(0, end - 1), end)] * waiting
    return tokens, places


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model's folder.

    Raises:
        UserError: the folder has no tokenizer, or a damaged one.
    """
    folder = Path(folder)
    if not any((folder / name).exists() for name in VOCABULARIES):
        # transformers would return a tokenizer without a vocabulary
        raise UserError(
            f"{folder}: no tokenizer can be loaded: none of {', '.join(VOCABULARIES)}"
        )
    old = not (folder / "tokenizer.json").exists()
    kind = T5Tokenizer if old and (folder / "spiece.model").exists() else AutoTokenizer
    try:
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(
            folder, trust_remote_code=False
        )
        return tokenizer
    except Exception as error:  # of many classes for damaged files
        if is_out_of_memory(error):
            raise
        reason = reason_of(error)[:300]
        raise UserError(f"{folder}: no tokenizer can be loaded: {reason}") from error
