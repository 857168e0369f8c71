"""CTC labels: the blank, the token list and the tokenizer of the CTC branch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from speechllm.utils.errors import UserError

END = -1  # label behind the text that CTC judges, where an answer goes on (asr_st)


def read_labels(path: Path) -> list[str] | None:
    """The labels of the CTC branch, one a line; None where there is no file."""
    try:
        return path.read_text("utf-8").splitlines() if path.exists() else None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


BLANK = 0


def label_runs(labels: Sequence[int]) -> list[tuple[int, int, int]]:
    """Group equal neighbours: ``[(label, first frame, frame behind the last)]``."""
    runs, begin = [], 0
    for label, group in groupby(labels):
        end = begin + sum(1 for _ in group)
        runs.append((label, begin, end))
        begin = end
    return runs


def label_text(label: str) -> str:
    """The text that a label of the CTC vocabulary stands for.

    ``<space>`` and sentencepiece's ``▁`` are a space; ``<unk>`` and its kin nothing.
    """
    if label == "<space>":
        return " "
    if label.startswith("<") and label.endswith(">"):
        return ""
    return label.replace("▁", " ")


class CTCTokenizer:
    """Text to CTC labels, with ESPnet's tokenizers and token list.

    Args:
        token_list: ``<blank>``, ``<unk>``, …, ``<sos/eos>``.
        bpemodel: sentencepiece model; None for characters.
    """

    def __init__(self, token_list: Sequence[str], bpemodel: str | Path | None = None):
        from espnet2.text.char_tokenizer import CharTokenizer
        from espnet2.text.sentencepiece_tokenizer import SentencepiecesTokenizer
        from espnet2.text.token_id_converter import TokenIDConverter

        self.tokenizer = (
            CharTokenizer(space_symbol="<space>")
            if bpemodel is None
            else SentencepiecesTokenizer(str(bpemodel))
        )
        self.converter = TokenIDConverter(list(token_list))

    def __call__(self, text: str) -> list[int]:
        return self.converter.tokens2ids(self.tokenizer.text2tokens(text))


def read_token_list(token_list: str | list[str]) -> list[str]:
    """Read CTC labels, one a line (ESPnet's token list)."""
    if not isinstance(token_list, str):
        return list(token_list)
    try:
        lines = Path(token_list).read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{token_list}: no such token list; run stage 5") from None
    if not lines or lines[0] != "<blank>":
        raise UserError(f"{token_list}, line 1: expected <blank>")
    return lines
