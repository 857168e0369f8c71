"""Tasks: ``asr:<lang>``, ``st:<source>:<target>`` and ``asr_st:<source>:<target>``."""

from __future__ import annotations

from dataclasses import dataclass

from speechllm.utils.errors import UserError

TASKS = ("asr", "st", "asr_st")


@dataclass(frozen=True)
class Task:
    """What to do with speech of ``source`` language: a text in ``target`` language."""

    name: str
    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.name} {self.source} {self.target}"


def parse_weighted(specification: str) -> tuple[Task, float]:
    """Read a task and its weight in the mix, 1 when none is given: ``st:en:fr*2``."""
    task, weight = split_weight(specification)
    return parse_task(task), weight


def split_weight(specification: str) -> tuple[str, float]:
    """Take a weight off a task or a data dir, 1 when there is none: ``train*0.5``.

    Raises:
        UserError: no number, or none from above 0 to 1000.
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


def parse_task(specification: str) -> Task:
    """Read ``asr:en``, ``st:en:fr`` or ``asr_st:en:fr``."""
    name, *languages = specification.split(":")
    expected = 1 if name == "asr" else 2
    if name not in TASKS or len(languages) != expected or not all(languages):
        raise UserError(
            f"task {specification!r}: expected asr:<lang>, st:<source>:<target> or "
            "asr_st:<source>:<target>"
        )
    if expected == 2 and languages[0] == languages[1]:
        raise UserError(f"task {specification!r}: the two languages are the same")
    return Task(name, languages[0], languages[-1])


def group_name(ask: tuple[str, str, str]) -> str:
    """``asr_en`` or ``st_en_fr``, as scores name it."""
    task, source, target = ask
    return "_".join([task, source] + [target] * (task != "asr"))
