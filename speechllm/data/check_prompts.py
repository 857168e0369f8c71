"""Check that the LLM's tokenizer can write the targets, and show the prompts."""

from __future__ import annotations

from pathlib import Path

MOST_EXAMPLES = 20000  # of each dir; enough to know a tokenizer by


def check_prompts(tokenizer, prompts_file: str, examples: list[Path]) -> list[str]:
    """Tokenise the prompts and answers of the first examples of each dir.

    Returns:
        A line for each task: its prompt as the LLM reads it, and the longest answer;
        and a warning where answers do not come back from the tokenizer as they went
        in (a tokenizer that normalises does that; one of another language, too).

    Raises:
        UserError: a task or language without a prompt.
    """
    from itertools import islice

    from speechllm.data.kaldi_table import read_table
    from speechllm.text.joint_target import find_separator, parse_answer, split_target
    from speechllm.text.prompts import answer_tokens, read_prompts

    prompts = read_prompts(prompts_file)
    longest: dict[str, int] = {}
    changed = []
    for folder in examples:
        texts = read_table(folder / "text")
        tasks = read_table(folder / "utt2task")
        for example, task in islice(tasks.items(), MOST_EXAMPLES):
            place = f"{example} of {folder}/text"
            wanted = split_target(task.split()[0], texts[example], place)
            tokens = answer_tokens(tokenizer, *wanted)
            back = tokenizer.decode(tokens, skip_special_tokens=True)
            if len(wanted) == 2:
                answer = parse_answer(back, find_separator(tokenizer))
                found = [answer.transcript, answer.translation]
            else:
                found = [" ".join(back.split())]
            if found != wanted:
                changed.append((place, "\t".join(wanted), "\t".join(found)))
            longest[task] = max(longest.get(task, 0), len(tokens))
    lines = []
    for task, size in sorted(longest.items()):
        before, behind = prompts.tokens(*task.split(), tokenizer)
        shown = f"{tokenizer.decode(before)}<speech>{tokenizer.decode(behind)}"
        lines.append(f"{task}: {shown!r}, answers of at most {size} tokens")
    if changed:
        place, text, back = changed[0]
        lines.append(
            f"warning: the LLM's tokenizer changes {len(changed)} answers, the first "
            f"is {place}: {text!r} comes back as {back!r}"
        )
    return lines
