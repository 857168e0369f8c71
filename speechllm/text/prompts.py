"""Prompts live in YAML: what the LLM is told around the speech, per task.

A prompts file looks so::

    chat: false
    languages: {en: English, fr: French}
    tasks:
      asr: "{speech} Transcript in {source}:"
      st: "{speech} Translation into {target}:"

``{speech}`` stands where the speech embeddings go; ``{source}`` and ``{target}`` are
the names of the languages. With ``chat: true`` the prompt is the user's turn in the
LLM's own chat template, and the answer the assistant's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from speechllm.text.joint_target import find_separator
from speechllm.utils.errors import UserError

SPEECH = "{speech}"


@dataclass(frozen=True)
class Prompts:
    """The prompts of all tasks.

    Attributes:
        tasks: task name to prompt.
        languages: language code to the name that the prompt uses.
        chat: whether the LLM's chat template goes around the prompt.
        origin: where they were read, for messages.
    """

    tasks: dict[str, str]
    languages: dict[str, str]
    chat: bool = False
    origin: str = "prompts"

    def text(self, task: str, source: str, target: str) -> str:
        """The prompt of a task with its languages' names filled in.

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
        self, task: str, source: str, target: str, tokenizer
    ) -> tuple[list[int], list[int]]:
        """Token ids before and behind the speech.

        Args:
            tokenizer: the LLM's, of transformers.
        """
        text = self.text(task, source, target)
        if self.chat:
            if not getattr(tokenizer, "chat_template", None):
                raise UserError(
                    f"{self.origin}: 'chat: true', but the LLM has no chat template"
                )
            turn = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(
                turn, tokenize=False, add_generation_prompt=True
            )
        prefix, suffix = text.split(SPEECH)
        bos = [] if self.chat or tokenizer.bos_token_id is None else None
        if bos is None:  # plain prompts begin as the LLM's texts do
            probe = tokenizer("", add_special_tokens=True)["input_ids"]
            bos = [t for t in probe if t == tokenizer.bos_token_id]
        return bos + encode(tokenizer, prefix), encode(tokenizer, suffix)


def encode(tokenizer, text: str) -> list[int]:
    """Token ids of a text, without special tokens put in front or behind."""
    if not text:
        return []
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def answer_tokens(tokenizer, *texts: str) -> list[int]:
    """The ids that the LLM is to write for a text: its tokens, then end of text.

    A text begins with a space, so that its first word is the token that it is
    anywhere else. Of two texts, transcript and translation, each is so written, with
    the separator between that the tokenizer keeps.
    """
    if len(texts) == 1:
        return [*encode(tokenizer, " " + texts[0].strip()), tokenizer.eos_token_id]
    separator = find_separator(tokenizer)
    transcript, translation = (
        encode(tokenizer, " " + separator.escape(text)) for text in texts
    )
    return [*transcript, *separator.tokens, *translation, tokenizer.eos_token_id]


def read_prompts(path: str | Path) -> Prompts:
    """Read a prompts file.

    Raises:
        UserError: it is missing, is no YAML, lacks a part, or a prompt does not hold
            ``{speech}`` exactly once.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such prompts file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML file: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected the keys tasks and languages")
    unknown = set(content) - {"tasks", "languages", "chat"}
    if unknown:
        raise UserError(f"{path}: unknown key {sorted(unknown)[0]!r}")
    for key in ("tasks", "languages"):
        if not isinstance(content.get(key), dict) or not content[key]:
            raise UserError(f"{path}: {key!r} is missing or is no mapping")
    for task, prompt in content["tasks"].items():
        if str(prompt).count(SPEECH) != 1:
            raise UserError(
                f"{path}: the prompt of task {task!r} must hold {SPEECH} exactly once"
            )
    return Prompts(
        tasks={str(k): str(v) for k, v in content["tasks"].items()},
        # YAML reads the language code of Norwegian, no, as false
        languages={
            "no" if k is False else str(k): str(v)
            for k, v in content["languages"].items()
        },
        chat=bool(content.get("chat", False)),
        origin=str(path),
    )
