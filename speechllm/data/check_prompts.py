"""Check of prompts and targets against the LLM's tokenizer.

A tokenizer may be unable to write a target, for example letters of a language that its
vocabulary lacks. The check shows this before training.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from speechllm.data.kaldi_table import join_tables
from speechllm.text.joint_target import find_separator, parse_answer, split_target
from speechllm.text.prompts import answer_tokens, read_prompts
from speechllm.text.tasks import Task, task_of
from speechllm.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_EXAMPLES = 20000  # per dir


def check_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts_file: str | Path, examples: list[Path]
) -> list[str]:
    """Tokenise the prompts and targets of the first examples of each dir.

    Args:
        tokenizer: of the LLM.
        prompts_file: YAML file of :mod:`speechllm.text.prompts`.
        examples: example dirs.

    Returns:
        One line per task with its prompt and the length of its longest target, and a
        warning if the tokenizer decodes targets to another text (because it normalises
        text or is made for another language).

    Raises:
        UserError: a task or language has no prompt, or there are no examples.
    """
    prompts = read_prompts(prompts_file)
    longest: dict[Task, int] = {}
    changed = []
    for folder in examples:
        tables = {name: folder / name for name in ("utt2task", "text")}
        for example, row in islice(join_tables(tables, "utt2task"), MAX_EXAMPLES):
            task = task_of(row["utt2task"], f"{folder}/utt2task, {example}")
            place = f"{example} of {folder}/text"
            if "text" not in row:
                raise UserError(f"{folder}/text: no line for {example}")
            expected = split_target(task.name, row["text"], place)
            tokens = answer_tokens(tokenizer, *expected)
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            if len(expected) == 2:
                answer = parse_answer(text, find_separator(tokenizer))
                found = [answer.transcript, answer.translation]
            else:
                found = [" ".join(text.split())]
            if found != expected:
                changed.append((place, "\t".join(expected), "\t".join(found)))
            longest[task] = max(longest.get(task, 0), len(tokens))
    if not longest:
        raise UserError(f"{examples[0]}/utt2task: no example")
    lines = []
    for task, size in sorted(longest.items()):
        before, after = prompts.tokens(*task, tokenizer)
        shown = f"{tokenizer.decode(before)}<speech>{tokenizer.decode(after)}"
        lines.append(f"{task}: {shown!r}, targets of at most {size} tokens")
    if changed:
        place, text, decoded = changed[0]
        lines.append(
            f"warning: the LLM's tokenizer changes {len(changed)} targets, the first "
            f"is {place}: {text!r} is decoded to {decoded!r}"
        )
    return lines
