"""Prompts of the LLM: the text around the speech, per task, from a YAML file.

A prompts file::

    chat: false
    languages: {en: English, fr: French}
    tasks:
      asr: "{speech} Transcript in {source}:"
      st: "{speech} Translation into {target}:"

``{speech}`` is the place of the speech embeddings; ``{source}`` and ``{target}`` are
the names of the languages. ``{hotwords}`` is the place of a list of hotwords, in the
form of the key ``hotwords``, such as ``"Words: {words}\n"``; without a list nothing is
there. With ``chat: true`` the prompt is the user's turn in the
LLM's own chat template, and the output the assistant's. A template that prints today's
date (Llama 3.2, SmolLM3) gets a fixed one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from speechllm.text.joint_target import find_separator
from speechllm.text.tasks import Task, check_language
from speechllm.utils.errors import UserError
from speechllm.utils.io import read_yaml

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPEECH, HOTWORDS, WORDS = "{speech}", "{hotwords}", "{words}"
_FIELD = re.compile(r"\{[A-Za-z_][^{}\s]*\}")


@dataclass(frozen=True)
class Prompts:
    """The prompts of all tasks.

    Attributes:
        tasks: task name to prompt.
        languages: language code to the name that the prompt uses.
        chat: wrap the prompt in the LLM's chat template.
        hotwords: form of a list of hotwords, with ``{words}``.
        max_hotword_tokens: size of the largest list that the model was trained with; 0:
            it was trained without, so that its prompts have none.
        origin: file of the prompts, for messages.
    """

    tasks: dict[str, str]
    languages: dict[str, str]
    chat: bool = False
    hotwords: str = ""
    max_hotword_tokens: int = 0
    origin: str = "prompts"

    def text(self, task: str, source: str, target: str) -> str:
        """Return the prompt of a task with the names of its languages filled in.

        The places of speech and hotwords stay as they are.

        Raises:
            UserError: the file has no such task or language.
        """
        if task not in self.tasks:
            known = ", ".join(sorted(self.tasks))
            raise UserError(f"{self.origin}: no prompt for task {task!r} (has {known})")
        for language in (source, target):
            if language not in self.languages:
                known = ", ".join(sorted(self.languages))
                raise UserError(
                    f"{self.origin}: language {language!r} has no name under "
                    f"'languages' (has {known})"
                )
        return (
            self.tasks[task]
            .replace("{source}", self.languages[source])
            .replace("{target}", self.languages[target])
        )

    def tokens(
        self,
        task: str,
        source: str,
        target: str,
        tokenizer: PreTrainedTokenizerBase,
        hotwords: Sequence[str] = (),
    ) -> tuple[list[int], list[int]]:
        """Return the token ids before and after the speech.

        Args:
            task, source, target: task and the codes of its languages.
            tokenizer: of the LLM.
            hotwords: those that fit (:mod:`speechllm.text.hotword_lists`).

        Raises:
            UserError: the file has no such task or language, or needs a chat template
                that the tokenizer lacks.
        """
        text = self.text(task, source, target)
        if self.chat:
            if not getattr(tokenizer, "chat_template", None):
                raise UserError(
                    f"{self.origin}: 'chat: true', but the LLM has no chat template"
                )
            turn = [{"role": "user", "content": text}]
            text = str(
                tokenizer.apply_chat_template(
                    turn,
                    chat_template=with_fixed_date(tokenizer.get_chat_template()),
                    tokenize=False,
                    add_generation_prompt=True,
                )
            )
        listed = self.hotwords.replace(WORDS, ", ".join(hotwords)) if hotwords else ""
        prefix, suffix = (part.replace(HOTWORDS, listed) for part in text.split(SPEECH))
        bos: list[int] = []
        if not self.chat and tokenizer.bos_token_id is not None:
            # plain prompts begin with the same token as any text of the LLM
            probe = tokenizer("", add_special_tokens=True)["input_ids"]
            bos = [t for t in probe if t == tokenizer.bos_token_id]
        return bos + encode(tokenizer, prefix), encode(tokenizer, suffix)


def with_fixed_date(template: str) -> str:
    """Return a chat template that prints a fixed date in place of today's.

    Prompts of training and decoding are equal with it. The date is the default of
    Llama 3.2's template. transformers accepts no functions as arguments of a template,
    so that a macro replaces ``strftime_now``.
    """
    if "strftime_now" not in template:
        return template
    date = datetime(2024, 7, 26)
    filters = "".join(
        f"|replace('{directive}', '{date.strftime(directive)}')"
        for directive in (f"%{letter}" for letter in "dbBYymAaHIMSpj")
    )
    macro = "{%- macro strftime_now(form) -%}{{ form" + filters + " }}{%- endmacro -%}"
    return macro + template


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a text, without special tokens at its ends."""
    if not text:
        return []
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def answer_tokens(tokenizer: PreTrainedTokenizerBase, *texts: str) -> list[int]:
    """Return the target token ids of the LLM: the text's, then end of text.

    A text begins with a space, so that its first word has the same token as within a
    text. Two texts, transcript and translation, are joined by the tokenizer's
    separator (:func:`~speechllm.text.joint_target.find_separator`).
    """
    end = tokenizer.eos_token_id
    if len(texts) == 1:
        return [*encode(tokenizer, " " + texts[0].strip()), end]
    separator = find_separator(tokenizer)
    transcript, translation = (
        encode(tokenizer, " " + separator.escape(text)) for text in texts
    )
    return [*transcript, *separator.tokens, *translation, end]


def read_prompts(path: str | Path) -> Prompts:
    """Read a prompts file.

    Raises:
        UserError: the file is missing or not YAML, lacks a key, a prompt does not
            contain ``{speech}`` exactly once or has an unknown field, a language code
            is none, or ``{hotwords}`` has no form.
    """
    if not Path(path).exists():
        raise UserError(f"{path}: no such prompts file")
    if not Path(path).is_file():  # reading a FIFO would wait
        raise UserError(f"{path}: not a regular file")
    content = read_yaml(path)
    unknown = set(content) - {"tasks", "languages", "chat", "hotwords"}
    if unknown:
        raise UserError(f"{path}: unknown key {min(map(str, unknown))!r}")
    for key in ("tasks", "languages"):
        if not isinstance(content.get(key), dict) or not content[key]:
            raise UserError(f"{path}: {key!r} is missing or not a mapping")
    hotwords = content.get("hotwords", "")
    if "hotwords" in content and (
        not isinstance(hotwords, str) or _FIELD.findall(hotwords) != [WORDS]
    ):
        raise UserError(f"{path}: 'hotwords' must contain {WORDS} exactly once")
    known = (SPEECH, "{source}", "{target}", *([HOTWORDS] if hotwords else ()))
    for task, prompt in content["tasks"].items():
        if not isinstance(prompt, str) or prompt.count(SPEECH) != 1:
            raise UserError(
                f"{path}: the prompt of task {task!r} must contain {SPEECH} exactly "
                "once"
            )
        for field in _FIELD.findall(prompt):
            if field == HOTWORDS and not hotwords:
                raise UserError(
                    f"{path}: the prompt of task {task!r} has {HOTWORDS}: write the "
                    f"form of the list, such as 'hotwords: \"Words: {WORDS} \"'"
                )
            if field not in known:
                raise UserError(
                    f"{path}: the prompt of task {task!r} has the unknown field "
                    f"{field}; known are {', '.join(known[:-1])} and {known[-1]}"
                )
    # YAML parses the language code of Norwegian, no, as false
    languages = {
        "no" if code is False else str(code): str(name)
        for code, name in content["languages"].items()
    }
    for code in languages:
        check_language(code, f"{path}: languages")
    return Prompts(
        tasks={str(k): str(v) for k, v in content["tasks"].items()},
        languages=languages,
        chat=bool(content.get("chat", False)),
        hotwords=hotwords,
        origin=str(path),
    )


def requested_task(
    prompts: Prompts, task: str, language: str | None, target_language: str | None
) -> Task:
    """Return a task of a model's prompts.

    Args:
        language: of the speech; the first one of the prompts if None.
        target_language: needed unless the task is ``asr``.

    Raises:
        UserError: there is no prompt for the task or a language.
    """
    source = next(iter(prompts.languages)) if language is None else language
    target = source if task == "asr" else target_language
    prompts.text(task, source, target or source)
    if target is None:
        raise UserError(f"task {task!r} needs a target_language")
    return Task(task, source, target)
