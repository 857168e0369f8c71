"""Tasks: ``asr:<lang>``, ``st:<source>:<target>`` and ``asr_st:<source>:<target>``."""

from __future__ import annotations

import re
from typing import NamedTuple

from speechllm.utils.errors import UserError

TASKS = ("asr", "st", "asr_st")
_NAME = re.compile(r"[A-Za-z0-9_]{1,32}")
# BCP 47, with the language as ISO 639 writes it: two or three lower-case letters
_LANGUAGE = re.compile(r"[a-z]{2,3}([-_][A-Za-z0-9]{1,8})*")


class Task(NamedTuple):
    """Speech in ``source`` language to text in ``target`` language.

    Attributes:
        name: ``asr`` (transcript), ``st`` (translation) or ``asr_st`` (both in one
            output).
        source: language code of the speech.
        target: language code of the text; for ``asr`` the same as ``source``.
    """

    name: str
    source: str
    target: str

    def __str__(self) -> str:
        """Return the value of ``utt2task``, such as ``st en fr``."""
        return " ".join(self)

    @property
    def group(self) -> str:
        """Name of the task in scores and thresholds: ``asr_en``, ``st_en_fr``."""
        languages = [self.source] if self.name == "asr" else [self.source, self.target]
        return "_".join([self.name, *languages])

    @property
    def has_transcript(self) -> bool:
        """True if the output holds a transcript, which CTC can score."""
        return self.name == "asr_st" or self.source == self.target

    @property
    def output_language(self) -> str:
        """Language in which the output begins; the guard measures the output in it."""
        return self.source if self.name == "asr_st" else self.target


def task_of(value: str, place: str) -> Task:
    """Parse a value of ``utt2task``: ``<task> <source language> <target language>``.

    Args:
        place: file and id of the value, for the message.

    Raises:
        UserError: not three fields, a name or language code that is none, or ``asr``
            into another language.
    """
    fields = value.split()
    if len(fields) != 3:
        raise UserError(
            f"{place}: expected '<task> <source language> <target language>', "
            f"found {value!r}"
        )
    return _checked(Task(*fields), place)


def parse_task(specification: str) -> Task:
    """Parse ``asr:en``, ``st:en:fr`` or ``asr_st:en:fr``.

    Raises:
        UserError: another form, a code that is none, or two equal languages.
    """
    name, *languages = specification.split(":")
    expected = 1 if name == "asr" else 2
    if name not in TASKS or len(languages) != expected or not all(languages):
        raise UserError(
            f"task {specification!r}: expected asr:<lang>, st:<source>:<target> or "
            "asr_st:<source>:<target>"
        )
    if expected == 2 and languages[0] == languages[1]:
        raise UserError(f"task {specification!r}: the two languages are the same")
    return _checked(Task(name, languages[0], languages[-1]), f"task {specification!r}")


def check_language(code: str, place: str) -> None:
    """Raise UserError, with ``place`` in front, unless ``code`` is a language code."""
    if not _LANGUAGE.fullmatch(code):
        raise UserError(
            f"{place}: {code!r} is not a language code such as 'en' or 'zh-CN'"
        )


def _checked(task: Task, place: str) -> Task:
    """Return a task whose fields can be parts of file names.

    Raises:
        UserError: a name or language code has other characters, or speech is
            transcribed (``asr``) in another language.
    """
    if not _NAME.fullmatch(task.name):
        raise UserError(f"{place}: {task.name!r} is not the name of a task")
    for language in task[1:]:
        check_language(language, place)
    if task.name == "asr" and task.source != task.target:
        raise UserError(
            f"{place}: recognition (asr) from {task.source} into {task.target}; use "
            "the task st for translation"
        )
    return task


def parse_weighted(specification: str) -> tuple[Task, float]:
    """Parse a task with its weight in the mix, 1 without one: ``st:en:fr*2``."""
    task, weight = split_weight(specification)
    return parse_task(task), weight


def split_weight(specification: str) -> tuple[str, float]:
    """Split the weight off a task or a data dir, 1 without one: ``train*0.5``.

    Raises:
        UserError: not a number above 0 and at most 1000.
    """
    name, star, number = specification.partition("*")
    weight = 1.0
    if star:
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not 0 < weight <= 1000:
            raise UserError(
                f"{specification!r}: a weight is a number above 0, at most 1000, "
                f"not {number!r}"
            )
    return name, weight
