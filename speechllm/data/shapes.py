"""Lengths of the examples, by which ESPnet makes batches (stage 7).

They come from tables and tokenizers alone; no audio is read. The files are those of
ESPnet's ``--collect_stats``: ``<name>_shape``, with lines ``<id> <length>``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import numpy as np

from speechllm.data.kaldi_table import join_tables, num_samples
from speechllm.utils.errors import UserError
from speechllm.utils.folders import FolderKind, atomic_directory
from speechllm.utils.io import file_sha256

TABLES = ("utt2num_samples", "text", "text_ctc", "utt2task")
#: Tokenises an example, given its id: see ``ExamplePreprocessor`` of the training.
Preprocess = Callable[[str, dict[str, str | np.ndarray]], dict[str, np.ndarray]]
DONE = ".done"  # name of a file with the key of what the lengths were made from
SHAPES = FolderKind(
    "lengths of examples",
    ("train/speech_shape", "valid/speech_shape"),
    (
        DONE,
        *(
            f"{kind}/{name}_shape"
            for kind in ("train", "valid")
            for name in ("speech", "text", "text_ctc", "prompt_prefix", "prompt_suffix")
        ),
    ),
)


def write_shapes(
    preprocess: Preprocess,
    examples: Mapping[str, Path],
    output: Path,
    tokenizer: object = None,
    files: Iterable[Path] = (),
) -> dict[str, int] | None:
    """Write the lengths of the examples of several sets.

    Args:
        preprocess: tokenises the texts.
        examples: example dirs by the name of their set, ``train`` and ``valid``.
        output: folder to write, with a folder per set.
        tokenizer: of the LLM, on which the lengths depend.
        files: of the prompts and CTC labels, on which they depend, too.

    Returns:
        The number of examples of each set; None if the lengths are up to date.

    Raises:
        UserError: a table is missing or damaged, or an example is not valid.
    """
    tables = [folder / table for folder in examples.values() for table in TABLES]
    for path in tables:
        if not path.exists():
            raise UserError(f"{path.parent}: no {path.name}; run stage 5 first")
    key = _make_key(tokenizer, [*files, *tables])
    done = output / DONE
    if done.exists() and done.read_text("utf-8").strip() == key:
        return None
    counts = {}
    inputs = [*examples.values(), *files]
    with atomic_directory(output, SHAPES, inputs) as new:
        for name, folder in examples.items():
            (new / name).mkdir()
            counts[name] = _write_set(preprocess, folder, new / name)
        (new / DONE).write_text(key + "\n", encoding="utf-8")
    return counts


def _make_key(tokenizer, paths: Iterable[Path]) -> str:
    """Return a hash of a tokenizer and the content of files."""
    key = hashlib.sha256()
    if tokenizer is not None:
        key.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
        key.update(repr(tokenizer).encode())
    for path in paths:
        key.update(file_sha256(path).encode())
    return key.hexdigest()


def _write_set(preprocess: Preprocess, folder: Path, output: Path) -> int:
    """Write the lengths of the examples of one set; return their number."""
    from tqdm import tqdm

    lengths = folder / "utt2num_samples"
    rows = join_tables({name: folder / name for name in TABLES}, lengths.name)
    count = 0
    with ExitStack() as stack:
        files: dict[str, TextIO] = {}
        for uid, row in tqdm(rows, unit="ex", mininterval=5):
            if missing := [name for name in TABLES if name not in row]:
                raise UserError(
                    f"{folder}: {uid} is not in {missing[0]}; run stage 5 again"
                )
            samples = num_samples(lengths, uid, row[lengths.name])
            data = {
                "speech": np.broadcast_to(np.float32(0), (samples,)),  # no memory
                "text": row["text"],
                "text_ctc": row["text_ctc"],
                "task": row["utt2task"],
            }
            for name, array in preprocess(uid, data).items():
                if name not in files:
                    path = output / f"{name}_shape"
                    files[name] = stack.enter_context(open(path, "w", encoding="utf-8"))
                files[name].write(f"{uid} {len(array)}\n")
            count += 1
    return count
