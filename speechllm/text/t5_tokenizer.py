"""rinna's tokenizers as their authors load them: "slow" and in legacy mode.

Their folders hold ``spiece.model`` and name transformers' ``T5Tokenizer``, which from
version 5 on is another program of that name: it splits at white space, puts a space in
front and knows nothing of sentencepiece's byte fallback, so that a rare character
comes out as ``<0xE9><0xB5><0xBA>``. Here sentencepiece itself does the work again.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from speechllm.utils.errors import UserError

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

    T5's sentinels are left out. It has that name so that the files it saves name the
    class that other programs are to load.
    """

    vocab_files_names = {"vocab_file": "spiece.model"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self,
        vocab_file: str,
        eos_token: str = "</s>",
        unk_token: str = "<unk>",
        pad_token: str = "<pad>",
        **options,
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
        """Join tokens to text: bytes to characters, special tokens as they are."""
        special = set(self.all_special_tokens)
        text, pieces, behind_special = "", [], False
        for token in tokens:
            if token not in special:
                pieces.append(token)
                behind_special = False
                continue
            text += self.sp_model.decode(pieces)
            text += token if behind_special else " " + token
            pieces, behind_special = [], True
        return (text + self.sp_model.decode(pieces)).strip()


def load_tokenizer(folder: str | Path):
    """The tokenizer of a model's folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    folder = Path(folder)
    if not any((folder / name).exists() for name in VOCABULARIES):
        # transformers would make up a tokenizer without a vocabulary
        raise UserError(
            f"{folder}: no tokenizer can be loaded: none of {', '.join(VOCABULARIES)}"
        )
    old = not (folder / "tokenizer.json").exists()
    kind = T5Tokenizer if old and (folder / "spiece.model").exists() else AutoTokenizer
    try:
        return kind.from_pretrained(folder)
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{folder}: no tokenizer can be loaded: {reason}") from error
