"""Vocabulary of the CTC branch: characters or pieces of sentencepiece.

``tokens.txt`` has one token per line in ESPnet's order: ``<blank>``, ``<unk>``, the
tokens, ``<sos/eos>``.
"""

from __future__ import annotations

import math
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from speechllm.data.kaldi_table import iterate_table
from speechllm.text.ctc_labels import read_token_list
from speechllm.utils.errors import UserError
from speechllm.utils.folders import FolderKind, atomic_directory

VOCABULARY = FolderKind("CTC vocabulary", ("tokens.txt",))
BLANK, UNKNOWN, SPACE, END = "<blank>", "<unk>", "<space>", "<sos/eos>"
SPECIAL = {BLANK, UNKNOWN, SPACE, END}
LEAST_COVERAGE = 0.995  # of a table's characters; less is warned of


def build_character_vocabulary(
    texts: Iterable[str | Path], output: str | Path, min_count: int = 1
) -> list[str]:
    """Write ``tokens.txt`` with the characters of text tables, most frequent first.

    A list of the same characters that is already there is kept: models may have been
    trained with its order, and more text would change it.

    Args:
        texts: tables such as ``text_ctc``.
        output: folder to write.
        min_count: characters that occur less often become ``<unk>``.

    Returns:
        The tokens.

    Raises:
        UserError: the tables have no text, or no character so often.
    """
    counts: Counter[str] = Counter()
    for line in _read_texts(texts):
        counts.update(line)
    counts.pop("\t", None)
    characters = sorted(
        (character for character, count in counts.items() if count >= min_count),
        key=lambda character: (-counts[character], character),
    )
    if not characters:
        raise UserError(f"no character occurs {min_count} times; use a lower count")
    labels = [SPACE if character == " " else character for character in characters]
    before = _earlier_tokens(Path(output))[2:-1]
    if sorted(before) == sorted(labels):
        labels = before
    tokens = [BLANK, UNKNOWN, *labels, END]
    with atomic_directory(output, VOCABULARY, texts) as new:
        _write_tokens(new, tokens)
    return tokens


def copy_vocabulary(
    source: str | Path, output: str | Path, texts: Iterable[str | Path] = ()
) -> list[str]:
    """Copy the vocabulary of a trained model, to adapt the model with its CTC labels.

    Args:
        source: folder of ``tokens.txt`` and, for pieces, ``bpe.model``.
        output: folder to write.
        texts: tables that the output folder must not contain.

    Returns:
        The tokens.

    Raises:
        UserError: the folder has no vocabulary.
    """
    source = Path(source)
    tokens = read_token_list(source / "tokens.txt")
    with atomic_directory(output, VOCABULARY, [source, *texts]) as new:
        for name in ("tokens.txt", "bpe.model"):
            if (source / name).is_file():
                shutil.copyfile(source / name, new / name)
    return tokens


def build_bpe_vocabulary(
    texts: Iterable[str | Path],
    output: str | Path,
    size: int,
    mode: str = "bpe",
    sentences: int = 0,
) -> list[str]:
    """Train ``bpe.model`` (sentencepiece) and write ``tokens.txt``.

    Args:
        texts: tables such as ``text_ctc``.
        output: folder to write.
        size: number of pieces, special ones included.
        mode: model of sentencepiece, ``bpe`` or ``unigram``.
        sentences: number of random lines to train on, always the same; 0: all. They
            bound the memory. sentencepiece's own sample differs between processes,
            also with a seed (0.2.3).

    Returns:
        The tokens.

    Raises:
        UserError: the tables have too little text, or too many characters for the
            size.
    """
    import sentencepiece

    failures: list[UserError] = []

    def lines() -> Iterator[str]:
        try:
            read = _read_texts(texts)
            yield from sample_lines(read, sentences) if sentences else read
        except UserError as error:  # sentencepiece 0.2.1 ends the text instead
            failures.append(error)
            raise

    sentencepiece.set_random_generator_seed(0)
    with atomic_directory(output, VOCABULARY, texts) as new:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=lines(),
                model_prefix=str(new / "bpe"),
                model_type=mode,
                vocab_size=size,
                character_coverage=1.0,
                normalization_rule_name="identity",  # ctc_text is normalised
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise (failures or [UserError(_explain(str(error), size))])[0] from None
        if failures:
            raise failures[0]
        (new / "bpe.vocab").unlink()
        model = sentencepiece.SentencePieceProcessor(model_file=str(new / "bpe.model"))
        pieces = [
            model.id_to_piece(index)
            for index in range(model.get_piece_size())
            if not (model.is_control(index) or model.is_unknown(index))
        ]
        tokens = [BLANK, UNKNOWN, *pieces, END]
        _write_tokens(new, tokens)
    return tokens


def sample_lines(lines: Iterable[str], count: int) -> list[str]:
    """Return ``count`` random lines, or all if there are fewer; always the same.

    Reservoir sampling, algorithm R of Vitter 1985, "Random sampling with a reservoir".
    """
    kept: list[str] = []
    draw = random.Random(0)
    for number, line in enumerate(lines, 1):
        if number <= count:
            kept.append(line)
        elif (place := draw.randrange(number)) < count:
            kept[place] = line
    return kept


@dataclass(frozen=True)
class Coverage:
    """Characters of a text table that a vocabulary has.

    Attributes:
        characters: number of characters in the table, without spaces.
        missing: count of each that the vocabulary lacks.
    """

    characters: int
    missing: Counter[str]

    @property
    def share(self) -> float:
        """Share of the characters that the vocabulary has; 1 without any character."""
        return 1 - self.missing.total() / max(self.characters, 1)

    def __str__(self) -> str:
        percent = math.floor(10_000 * self.share) / 100
        text = f"{percent:.2f} % of {self.characters} characters have a label"
        if self.missing:
            examples = " ".join(c for c, _ in self.missing.most_common(10))
            text += f"; without: {len(self.missing)} different ones, such as {examples}"
        return text


def measure_coverage(tokens: Iterable[str], text: str | Path) -> Coverage:
    """Count the characters of a text table that no token has.

    Args:
        tokens: characters or pieces.
        text: table such as ``text_ctc``.
    """
    known = set("".join(token for token in tokens if token not in SPECIAL))
    counts: Counter[str] = Counter()
    for _, line in iterate_table(text):
        counts.update("".join(line.split()))
    missing = Counter({c: n for c, n in counts.items() if c not in known})
    return Coverage(counts.total(), missing)


def _explain(error: str, size: int) -> str:
    """Return the message for an error of sentencepiece's trainer."""
    if limit := re.search(r"value <= (\d+)", error):
        return f"{size} BPE pieces: the texts allow at most {limit[1]}; use fewer"
    if "smaller than required_chars" in error:
        least = re.search(r"required_chars\.\s*\d+ vs (\d+)", error)
        count = f" ({least[1]})" if least else ""
        return f"{size} BPE pieces: fewer than the texts have characters{count}"
    return f"sentencepiece cannot train {size} pieces: {error.strip()}"


def _read_texts(texts: Iterable[str | Path]) -> Iterator[str]:
    empty = True
    for path in texts:
        for _, text in iterate_table(path):
            if text:
                empty = False
                yield text
    if empty:
        raise UserError(f"{', '.join(map(str, texts))}: no text to build tokens from")


def _earlier_tokens(folder: Path) -> list[str]:
    """Return the tokens of an earlier vocabulary; none if it is damaged."""
    try:
        return read_token_list(folder / "tokens.txt")
    except UserError:
        return []


def _write_tokens(folder: Path, tokens: list[str]) -> None:
    if len(set(tokens)) != len(tokens):
        reserved = next(token for token in tokens if tokens.count(token) > 1)
        raise UserError(f"the texts contain the reserved token {reserved}")
    content = "".join(f"{token}\n" for token in tokens)
    (folder / "tokens.txt").write_text(content, encoding="utf-8")
