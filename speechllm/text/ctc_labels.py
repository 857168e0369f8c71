"""CTC labels: the token list, its special labels and the tokenizer.

A token list is ESPnet's: one label a line, ``<blank>``, ``<unk>``, …, ``<sos/eos>``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Hashable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from speechllm.utils.errors import UserError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

BLANK = 0  # index of ``<blank>``
NEVER = -1e30  # log probability of impossible events; finite, so that no sum is NaN
END = -1  # marks the end of the transcript where a translation follows (asr_st)
PENDING = -2  # marks a last character of which only some bytes are written

Label = TypeVar("Label", bound=Hashable)


class CTCTokenizer:
    """Text to CTC labels, as with ESPnet's tokenizers and token list.

    Args:
        token_list: ``<blank>``, ``<unk>``, …, ``<sos/eos>``.
        bpemodel: sentencepiece model; None for characters.

    Raises:
        UserError: the token list has a label twice or lacks ``<unk>``, or the
            sentencepiece model cannot be read or has other pieces.
    """

    def __init__(self, token_list: Sequence[str], bpemodel: str | Path | None = None):
        self.token_list = list(token_list)
        self.bpe = bpemodel is not None
        self.index = {label: k for k, label in enumerate(self.token_list)}
        if "<unk>" not in self.index:
            raise UserError("the token list has no <unk>; run stage 5 again")
        if len(self.index) < len(self.token_list):
            counts = Counter(self.token_list)
            twice = next(label for label in counts if counts[label] > 1)
            raise UserError(f"the token list has {twice!r} twice; run stage 5 again")
        if bpemodel is not None:
            self.pieces = read_pieces(bpemodel, self.index)

    def tokens(self, text: str) -> list[str]:
        """Return the characters (``<space>`` for a space) or BPE pieces of a text."""
        if self.bpe:
            return list(self.pieces.encode(text, out_type=str))
        return ["<space>" if character == " " else character for character in text]

    def label(self, token: str) -> int:
        """Return the label of a character or BPE piece; ``unknown`` without one."""
        return self.index.get(token, self.unknown)

    def __call__(self, text: str) -> list[int]:
        """Return the labels of a text; ``unknown`` for a token without one."""
        unknown = self.unknown
        return [self.index.get(token, unknown) for token in self.tokens(text)]

    def scoring_units(self, text: str) -> list[int]:
        """Return the units by which CTC scores a text.

        They are its labels, or code points of its characters where the labels are BPE
        pieces (:mod:`speechllm.decoding.piece_lattice_scorer`), with ``▁`` before each
        word.
        """
        if not self.bpe:
            return self(text)
        return [ord(character) for piece in self.tokens(text) for character in piece]

    def extend(self, labels: list[int], before: str, text: str) -> list[int]:
        """Return the scoring units of ``text``, given those of its beginning.

        Only what follows ``before`` is tokenised, if labels are characters.
        """
        if self.bpe or not text.startswith(before):
            return self.scoring_units(text)
        return labels + self(text[len(before) :]) if len(text) > len(before) else labels

    @property
    def unknown(self) -> int:
        """Index of ``<unk>``."""
        return self.index["<unk>"]


def read_pieces(bpemodel: str | Path, labels: Container[str]) -> SentencePieceProcessor:
    """Read a sentencepiece model whose pieces are labels.

    Raises:
        UserError: it cannot be read, or a piece is not among the labels.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        model = SentencePieceProcessor(model_file=str(bpemodel))
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{bpemodel}: not a sentencepiece model: {reason}") from None
    for index in range(model.get_piece_size()):
        special = model.is_control(index) or model.is_unknown(index)
        piece = model.id_to_piece(index)
        if piece not in labels and not special:
            raise UserError(
                f"{bpemodel}: its piece {piece!r} is not in the token list; use the "
                "files of one vocabulary"
            )
    return model


def has_pieces(token_list: Sequence[str]) -> bool:
    """Return whether labels are BPE pieces, not characters."""
    return any("▁" in label for label in token_list)


def read_token_list(token_list: str | Path | list[str]) -> list[str]:
    """Read a token list; one that is a list already is returned as it is.

    Raises:
        UserError: the file is missing or unreadable, or does not begin with
            ``<blank>``.
    """
    if isinstance(token_list, list):
        return token_list
    try:
        labels = Path(token_list).read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{token_list}: no such token list; run stage 5") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{token_list}: cannot be read: {error}") from error
    if not labels or labels[0] != "<blank>":
        raise UserError(f"{token_list}, line 1: expected <blank>")
    return labels


def label_text(label: str) -> str:
    """Return the text of a label.

    ``<space>`` and sentencepiece's ``▁`` are a space; special labels are empty.
    """
    if label == "<space>":
        return " "
    if label.startswith("<") and label.endswith(">"):
        return ""
    return label.replace("▁", " ")


def label_runs(labels: Sequence[Label]) -> list[tuple[Label, int, int]]:
    """Group equal neighbours: ``[(label, first frame, end frame), …]``."""
    runs, begin = [], 0
    for label, group in groupby(labels):
        end = begin + sum(1 for _ in group)
        runs.append((label, begin, end))
        begin = end
    return runs


class LabelTokenizer:
    """Tokenizer whose tokens are CTC labels, for a model without an LLM.

    Args:
        token_list: the labels.
    """

    def __init__(self, token_list: Sequence[str]):
        self.token_list = list(token_list)

    def decode(self, labels: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of labels."""
        text = "".join(label_text(self.token_list[k]) for k in labels)
        return " ".join(text.split())

    def convert_ids_to_tokens(self, labels: Sequence[int]) -> list[str]:
        """Return the labels as in the token list."""
        return [self.token_list[k] for k in labels]
