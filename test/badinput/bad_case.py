"""A bad input, the command that reads it, and the checks of the outcome."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: Verdicts on an outcome; all but the first are faults.
RIGHT, TRACEBACK, SILENT, WRONG, HANG, LOST, ENTERED = VERDICTS = (
    "right",
    "traceback",
    "silent",
    "wrong",
    "hang",
    "lost",
    "entered",
)


@dataclass
class Place:
    """Where a case runs.

    Attributes:
        folder: working folder; it holds a copy of the base inputs.
        user: files of the user next to it.
        model: exported model folder shared by all cases.
        port: of the listener on 127.0.0.1, to which nothing may connect.
        planted: file that planted code would write.
    """

    folder: Path
    user: Path
    model: Path
    port: int
    planted: Path

    def write(self, name: str, content: str | bytes) -> str:
        """Write a file of the working folder and return its name."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(data)
        return name

    def run_before(self, function: Callable[[], object]) -> None:
        """Call a function in a silent fork in the working folder, before the case."""
        child = os.fork()
        if child == 0:
            try:
                os.chdir(self.folder)
                null = os.open(os.devnull, os.O_RDWR)
                for stream in range(3):
                    os.dup2(null, stream)
                function()
            finally:
                os._exit(0)
        os.waitpid(child, 0)


@dataclass
class Outcome:
    """The outcome of a case: exit status, output and place."""

    status: int
    out: str
    err: str
    place: Place

    @property
    def errors(self) -> list[str]:
        """Lines on standard error that report an error."""
        return [
            line
            for line in re.split(r"[\n\r]", self.err)
            if re.match(
                r"(error: |(python -m |tools/)\S+.*: error: |speechllm.*: error: )",
                line,
            )
        ]


#: Return an empty string if the outcome is right, else "<verdict>: <reason>".
Check = Callable[[Outcome], str]


@dataclass
class Case:
    """One bad input.

    Attributes:
        family: group of the table.
        name: unique in the family.
        build: writes the input and returns what runs: the arguments of a command, with
            its module first, or a function without arguments.
        check: of the outcome.
        may_change: globs, relative to the working folder, of files that the user has
            named as output and that may therefore change.
        user_id: run as this user; 0 is root, to whom no file is read-only.
        limit: size in bytes of the largest file that can be written.
        stdin: returns the content of standard input.
        seconds: after which the case hangs.
    """

    family: str
    name: str
    build: Callable[[Place], list[str] | Callable[[], object]]
    check: Check
    may_change: tuple[str, ...] = ()
    user_id: int = 0
    limit: int | None = None
    stdin: Callable[[], bytes] = bytes
    seconds: float = 30.0


def refused(*names: str) -> Check:
    """Check for exit status 1 and one error line, the last, with all ``names``."""

    def check(outcome: Outcome) -> str:
        if outcome.status == 0:
            return f"{SILENT}: exit 0, no error"
        errors = outcome.errors
        if len(errors) != 1:
            return f"{WRONG}: {len(errors)} error lines: {outcome.err[-200:]!r}"
        if outcome.status not in (1, 2):
            return f"{WRONG}: exit {outcome.status}"
        lines = [line for line in re.split(r"[\n\r]", outcome.err) if line.strip()]
        if lines[-1] != errors[0]:
            return f"{WRONG}: the message has more lines: {lines[-1]!r}"
        for name in names:
            if name not in errors[0]:
                return f"{WRONG}: {name!r} is not named: {errors[0][:300]!r}"
        return ""

    return check


def passes(test: Callable[[Outcome], str] | None = None) -> Check:
    """Check for exit status 0 and no error line; ``test`` returns what is wrong."""

    def check(outcome: Outcome) -> str:
        if outcome.status or outcome.errors:
            told = outcome.errors or [outcome.err[-200:]]
            return f"{WRONG}: exit {outcome.status}: {told[0][:300]!r}"
        problem = test(outcome) if test else ""
        return f"{SILENT}: {problem}" if problem else ""

    return check


def either(*checks: Check) -> Check:
    """Check that one of ``checks`` holds; the first one's reason otherwise."""

    def check(outcome: Outcome) -> str:
        reasons = [one(outcome) for one in checks]
        if "" in reasons:
            return ""
        return reasons[-1] if outcome.status == 0 else reasons[0]

    return check


def listed(bad: list[str], good: dict[str, float]) -> Check:
    """Check that ``transcribe --format json`` fails for ``bad`` and reads ``good``.

    Args:
        bad: names of recordings that have an error line.
        good: seconds of the others by name.
    """

    def check(outcome: Outcome) -> str:
        if outcome.status != (1 if bad else 0):
            kind = SILENT if bad and outcome.status == 0 else WRONG
            return f"{kind}: exit {outcome.status}: {outcome.err[-300:]!r}"
        text = outcome.out
        if (outcome.place.folder / "out.jsonl").is_file():
            text = (outcome.place.folder / "out.jsonl").read_text("utf-8")
        try:
            entries = {e["name"]: e for e in map(json.loads, text.splitlines())}
        except (ValueError, KeyError) as error:
            return f"{WRONG}: output is not JSON lines: {error}"
        for name in bad:
            if not any(name in line for line in outcome.errors):
                return f"{SILENT}: no error line names {name}: {outcome.err[-300:]!r}"
        for name, seconds in good.items():
            if name not in entries or "error" in entries[name]:
                reason = entries.get(name, {}).get("error", "no entry")
                return f"{WRONG}: {name} is not transcribed: {reason}"
            if abs(entries[name]["seconds"] - seconds) > 0.15 + 0.02 * seconds:
                return (
                    f"{SILENT}: {name} has {entries[name]['seconds']} s, not {seconds}"
                )
        return ""

    return check
