"""Lists of hotwords in training: true and false words of the training texts."""

from __future__ import annotations

import argparse
import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from espnet2.fileio.read_text import read_2columns_text

from speechllm.text.hotword_lists import MAX_TOKENS, choose_hotwords
from speechllm.text.prompts import HOTWORDS, Prompts
from speechllm.text.tasks import Task, task_of
from speechllm.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_TEXTS = 200_000  # of a table or split, evenly spaced, whose words are counted
_NO_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
#: Words of at least four letters; in scripts without spaces between words two or more
#: katakana, or Chinese characters, in a row.
_WORD = re.compile(
    rf"[\u30a1-\u30fe]{{2,}}|[\u3400-\u9fff]{{2,8}}|(?:(?![{_NO_SPACES}])[^\W\d_]){{4,}}"
)


@dataclass(frozen=True)
class ListOptions:
    """Options of the lists (``hotword_conf`` of a training config).

    Attributes:
        max_tokens: size of the longest list in a prompt, in LLM tokens; decoding keeps
            to it.
        without: share of the examples without a list.
        true_words: maximum number of words of the target in a list.
        false_words: maximum number of words of other targets. Their number is drawn
            uniformly by its logarithm, then the list is reduced to ``max_tokens`` as in
            decoding.
    """

    max_tokens: int = MAX_TOKENS
    without: float = 0.5
    true_words: int = 3
    false_words: int = 1000


class HotwordSampler:
    """Draws the list of hotwords of each training example.

    A word's weight is the inverse of its number of occurrences in the training targets.
    A list depends on seed, epoch and utterance only.

    Args:
        options: of the lists.
        counts: words of the training targets of each task.
        tokenizer: of the LLM.
        seed: of the training.
        redraw: draw new lists in each epoch; in validation they stay the same.
    """

    def __init__(
        self,
        options: ListOptions,
        counts: Mapping[Task, Counter[str]],
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        redraw: bool = True,
    ):
        self.options, self.counts, self.tokenizer = options, counts, tokenizer
        self.seed, self.redraw = seed, redraw
        self.words = {task: sorted(found) for task, found in counts.items()}
        self.weights = {  # cumulative
            task: np.cumsum([1 / counts[task][word] for word in words])
            for task, words in self.words.items()
        }

    def draw(
        self, uid: str, task: Task, texts: Sequence[str], epoch: int
    ) -> tuple[str, ...]:
        """Return the list of an example in an epoch; empty for none.

        Args:
            texts: of the target.
        """
        options, digest = self.options, sha256(uid.encode()).digest()
        key = [self.seed, epoch if self.redraw else 0]
        random = np.random.default_rng([*key, int.from_bytes(digest[:8], "big")])
        if random.random() < options.without or not self.words.get(task):
            return ()
        spoken = sorted({word for text in texts for word in _WORD.findall(text)})
        rarity = np.array([1 / max(self.counts[task][word], 1) for word in spoken])
        size = min(int(random.integers(options.true_words + 1)), len(spoken))
        true = random.choice(spoken, size, False, rarity / rarity.sum()) if size else []
        number = int(math.exp(random.uniform(0, math.log(options.false_words + 1))))
        weights = self.weights[task]
        drawn = np.searchsorted(weights, random.random(number) * weights[-1])
        false = {self.words[task][index] for index in drawn}.difference(spoken)
        words = [*map(str, true), *sorted(false)]
        words = [words[index] for index in random.permutation(len(words))]
        text = " ".join(texts)
        return choose_hotwords(words, text, self.tokenizer, options.max_tokens)


def build_hotword_sampler(
    args: argparse.Namespace,
    prompts: Prompts,
    tokenizer: PreTrainedTokenizerBase,
    train: bool,
) -> HotwordSampler | None:
    """Return the sampler of a training; None without ``hotword_conf``.

    Args:
        args: of the training program.
        tokenizer: of the LLM.
        train: false for validation.

    Raises:
        UserError: no prompt has a place for the list, or the training set has no words.
    """
    if not args.hotword_conf:
        return None
    if not any(HOTWORDS in prompt for prompt in prompts.tasks.values()):
        raise UserError(
            f"{prompts.origin}: hotword_conf needs a prompt with {HOTWORDS}"
        )
    tables = {name: path for path, name, _ in args.train_data_path_and_name_and_type}
    if not {"text", "task"} <= tables.keys():  # lengths of a set without targets
        return None
    counts = count_words(tables["text"], tables["task"])
    if not any(counts.values()):
        raise UserError(f"{tables['text']}: no words for lists of hotwords")
    options = ListOptions(**args.hotword_conf)
    return HotwordSampler(options, counts, tokenizer, args.seed, redraw=train)


@functools.lru_cache(maxsize=1)  # training and validation use the same, as do splits
def count_words(texts: str, tasks: str) -> dict[Task, Counter[str]]:
    """Count the words of the targets of each task.

    Args:
        texts, tasks: tables of an example dir, or folders of their splits.
    """
    counts: dict[Task, Counter[str]] = defaultdict(Counter)
    splits = sorted(Path(texts).glob("split.*")) if Path(texts).is_dir() else [texts]
    for part in map(Path, splits):
        targets = read_2columns_text(part)
        found = Path(tasks, part.name) if Path(tasks).is_dir() else tasks
        step = 1 + len(targets) // MOST_TEXTS
        for uid, task in islice(read_2columns_text(found).items(), None, None, step):
            words = _WORD.findall(targets[uid])
            counts[task_of(task, f"{found}, {uid}")].update(words)
    return dict(counts)
