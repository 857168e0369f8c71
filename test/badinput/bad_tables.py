"""Damaged Kaldi tables, tasks, references and score files, for every reader of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from bad_base import TEXTS, UTTERANCES, edit, to_fifo, to_folder, write_rows
from bad_case import SILENT, Case, Check, Outcome, Place, either, passes, refused

#: Command -> data dir it reads, arguments, tables it needs, tables it may read.
COMMANDS: dict[str, tuple[str, list[str], set[str]]] = {
    "validate": (
        "data", ["speechllm.bin.data_dir", "validate", "--input", "data"],
        {"wav.scp", "text", "utt2spk", "utt2lang", "spk2utt"},
    ),
    "format": (
        "data", ["speechllm.bin.format_audio", "--input", "data", "--output", "new"],
        {"wav.scp", "text", "utt2spk", "utt2lang", "spk2utt"},
    ),
    "format segments": (
        "segmented",
        ["speechllm.bin.format_audio", "--input", "segmented", "--output", "new"],
        {"wav.scp", "text", "utt2spk", "utt2lang", "spk2utt"},
    ),
    "filter": (
        "dump",
        ["speechllm.bin.data_dir", "filter", "--input", "dump", "--output", "new"],
        {"text", "utt2spk"},
    ),
    "combine": (
        "dump",
        ["speechllm.bin.data_dir", "combine", "--input", "dump", "--output", "new"],
        set(),
    ),
    "subset": (
        "dump",
        ["speechllm.bin.data_dir", "subset", "--input", "dump", "--output", "new",
         "--count", "3"],
        {"utt2spk"},
    ),
    "perturb": (
        "data",
        ["speechllm.bin.data_dir", "perturb_speed", "--input", "data", "--output",
         "new"],
        {"utt2spk"},
    ),
    "statistics": (
        "dump", ["speechllm.bin.data_dir", "statistics", "--input", "dump"],
        {"utt2spk"},
    ),
    "examples": (
        "dump",
        ["speechllm.bin.make_examples", "--input", "dump", "--tasks", "asr:en",
         "--output", "new"],
        {"text", "utt2spk", "utt2lang", "utt2num_samples", "wav.scp"},
    ),
    "score": (
        "examples",
        ["speechllm.bin.score", "--examples", "examples", "--decode_dir",
         "exp/sys/decode/test"],
        {"text", "utt2task"},
    ),
    "compare": (
        "examples",
        ["speechllm.bin.compare", "--examples", "examples", "--a",
         "exp/sys/decode/test", "--b", "exp/other/decode/test", "--samples", "100"],
        {"text", "utt2task"},
    ),
    "vocabulary": (
        "examples",
        ["speechllm.bin.build_vocabulary", "--text", "examples/text_ctc", "--output",
         "new"],
        {"text_ctc"},
    ),
    "decode": (
        "examples",
        ["speechllm.bin.decode", "--examples", "examples", "--output_dir", "new",
         "--model"],
        {"wav.scp", "utt2task"},
    ),
}  # fmt: skip


def damages() -> dict[str, tuple[Callable[[Path], object], str]]:
    """Return functions that damage a table, and what must follow.

    ``bad``: the table is refused if it is needed; ``good``: it is read as before;
    ``any``: either.
    """

    def replace(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
        return lambda path: edit(path, change)

    def lines(change) -> Callable[[Path], object]:
        return replace(lambda text: b"".join(change(text.splitlines(keepends=True))))

    def bare(rows: list[bytes]) -> list[bytes]:
        return [rows[0].split()[0] + b"\n", *rows[1:]]

    return {
        "missing": (lambda path: path.unlink(), "bad"),
        "a folder": (to_folder, "bad"),
        "a FIFO": (to_fifo, "bad"),
        "empty": (replace(lambda text: b""), "bad"),
        "a line twice": (lines(lambda rows: [rows[0], *rows]), "bad"),
        "not sorted": (lines(lambda rows: rows[::-1]), "any"),
        "a blank line": (lines(lambda rows: [rows[0], b"\n", *rows[1:]]), "bad"),
        "Latin-1": (replace(lambda text: text.rstrip() + b" \xe9\xe8\n"), "bad"),
        "UTF-16": (replace(lambda text: text.decode().encode("utf-16")), "bad"),
        "random bytes": (
            replace(lambda text: os.urandom(0) + bytes(range(256))),
            "bad",
        ),
        "a byte-order mark": (replace(lambda text: b"\xef\xbb\xbf" + text), "good"),
        "CR LF": (replace(lambda text: text.replace(b"\n", b"\r\n")), "good"),
        "no last line end": (replace(lambda text: text.rstrip(b"\n")), "good"),
        "spaces at ends": (replace(lambda text: text.replace(b"\n", b"  \n")), "good"),
        "NUL": (replace(lambda text: text.replace(b"\n", b"\0\n", 1)), "any"),
        "no value": (lines(bare), "any"),
        "one id less": (lines(lambda rows: rows[1:]), "any"),
        "one id more": (lines(lambda rows: [*rows, b"z-9 x\n"]), "any"),
        "a very long line": (
            lines(lambda rows: [rows[0].rstrip() + b" x" * 100000 + b"\n", *rows[1:]]),
            "any",
        ),
        "control characters": (
            replace(lambda text: text.replace(b"\n", b"\x1b[2J\x07\n", 1)),
            "any",
        ),
        "a line separator": (
            replace(lambda text: text.replace(b"\n", b" \xe2\x80\xa8x\n", 1)),
            "any",
        ),
    }


def nothing_lost(outcome: Outcome) -> str:
    """Check that each utterance of the input is in the output or listed as dropped."""
    new = outcome.place.folder / "new"
    if not (new / "utt2spk").exists():
        return ""
    kept = (new / "utt2spk").read_text()
    path = new / "dropped.tsv"
    kept += path.read_text() if path.exists() else ""
    missing = [name for name in UTTERANCES if name not in kept]
    return f"{missing} are neither in the output nor in dropped.tsv" if missing else ""


def unchanged(command: str) -> Callable[[Outcome], str]:
    """Return a check that the output is that of the sound input."""

    def test(outcome: Outcome) -> str:
        if problem := nothing_lost(outcome):
            return problem
        new = outcome.place.folder / "new"
        if command in ("filter", "combine", "subset", "format", "format segments"):
            rows = (new / "text").read_text().splitlines()
            if rows != [f"{k} {v}" for k, v in TEXTS.items()]:
                return f"text is {rows}"
        return ""

    return test


def cases() -> Iterator[Case]:
    """Yield every damage of every table that a command may read."""
    for command, (folder, arguments, needed) in COMMANDS.items():
        tables = sorted(needed | {"utt2lang", "text"})
        if command == "format segments":
            tables += ["segments"]
        if folder == "dump":
            tables += ["utt2num_samples", "text.fr"]
        if command in ("vocabulary", "decode"):
            tables = sorted(needed)
        if command == "compare":
            tables = ["text", "utt2task"]
        for table in dict.fromkeys(tables):
            for damage, (change, effect) in damages().items():
                yield table_case(
                    command, folder, arguments, table, damage, change,
                    effect, table in needed or table == "segments",
                )  # fmt: skip
    yield from decoded_tables()
    yield from tasks()
    yield from values()
    yield from score_files()


def table_case(
    command: str, folder: str, arguments: list[str], table: str, damage: str,
    change: Callable, effect: str, needed: bool,
) -> Case:  # fmt: skip
    """Return the case of one damaged table."""

    def build(place: Place) -> list[str]:
        change(place.folder / folder / table)
        line = list(arguments)
        return [*line, str(place.model)] if line[-1] == "--model" else line

    refusal = either(refused(table), refused(folder))
    if command == "validate":
        refusal = problems(table)
    if damage == "empty" and needed and command in ("examples", "statistics"):
        check = either(refusal, passes(nothing_lost))
    elif (
        effect == "bad" and needed and not (damage == "missing" and table == "segments")
    ):
        check: Check = refusal
    elif effect == "good":
        check = passes(unchanged(command))
    else:
        check = either(refusal, passes(nothing_lost))
        if command == "subset":  # takes some of the utterances
            check = either(refusal, passes())
    may_change = ("exp/sys/decode/test/score_asr_en*",)
    return Case(
        "tables", f"{command}: {table}, {damage}", build, check, may_change, seconds=20
    )


def problems(table: str) -> Check:
    """Check that ``validate`` prints a problem of the table and exits with 1."""

    def check(outcome: Outcome) -> str:
        if outcome.status == 0:
            return f"{SILENT}: valid"
        reason = refused()(outcome)
        if reason or table not in outcome.out + outcome.err:
            return reason or f"{SILENT}: {table} is not named: {outcome.out[-200:]!r}"
        return ""

    return check


def decoded_tables() -> Iterator[Case]:
    """Yield damaged hypotheses for ``score`` and ``compare``."""
    for damage, (change, effect) in damages().items():
        for command in ("score", "compare"):

            def build(place: Place, change=change, command=command) -> list[str]:
                change(place.folder / "exp" / "sys" / "decode" / "test" / "text")
                return COMMANDS[command][1]

            refusal = refused("exp/sys/decode/test/text")
            check = {
                "bad": refusal, "good": passes(), "any": either(refusal, passes()),
            }[effect]  # fmt: skip
            yield Case(
                "hypotheses", f"{command}: {damage}", build, check,
                ("exp/sys/decode/test/score_asr_en*",), seconds=20,
            )  # fmt: skip


def tasks() -> Iterator[Case]:
    """Yield bad tasks in ``utt2task`` and on the command line."""
    bad = [
        "asr", "asr en", "asr en en en", "asr ../../x ../../x", "st en ../../../user",
        "../x en en", "asr EN EN", "asr e e", "asr english english", "asr en fr",
        "asr 日本 日本", "asr en\ten", "asr en/en en", "asr . .", "asr .. ..",
        "ASR en en", "as-r en en", "asr en *", "asr $(x) en", "asr;x en en",
        "asr_st en", "st en en/../../../../user", "asr \u202een en", "asr\0 en en",
    ]  # fmt: skip
    for value in bad:
        for command in ("score", "compare", "decode"):

            def build(place: Place, value=value, command=command) -> list[str]:
                names = [f"{n}-asr-en" for n in UTTERANCES]
                write_rows(
                    place.folder / "examples" / "utt2task", dict.fromkeys(names, value)
                )
                line = COMMANDS[command][1]
                return [*line, str(place.model)] if command == "decode" else line

            check: Check = refused()
            if "\t" in value:
                check = either(refused("utt2task"), passes())
            yield Case(
                "tasks", f"{command}: utt2task {value!r}", build, check,
                ("exp/sys/decode/test/score_asr_en*",),
            )  # fmt: skip
    specifications = [
        "", ":", "asr", "asr:", "asr:en:en:en", "asr:en*", "asr:en*0", "asr:en*-1",
        "asr:en*nan", "asr:en*inf", "asr:en*1e9", "asr:en*x", "asr:en**2", "st:en",
        "st:en:../../x", "asr:../../x", "asr:EN", "asr:xx", "st:en:de", "x:en",
        "asr en", "asr:en asr:en", "st:en:en", "asr_st:en:", "asr:en\n", "asr:*",
    ]  # fmt: skip
    for value in specifications:

        def build(place: Place, value=value) -> list[str]:
            return [
                "speechllm.bin.make_examples", "--input", "dump", "--tasks", value,
                "--output", "new",
            ]  # fmt: skip

        check = passes() if value == "asr:en\n" else refused()
        yield Case("tasks", f"make_examples --tasks {value!r}", build, check)
    for value in ("dump*nan", "dump*-1", "dump*inf", "dump*0", "dump*x", "no*1", "*"):

        def build(place: Place, value=value) -> list[str]:
            return [
                "speechllm.bin.make_examples", "--input", value, "--tasks", "asr:en",
                "--output", "new",
            ]  # fmt: skip

        yield Case("tasks", f"make_examples --input {value!r}", build, refused())


def values() -> Iterator[Case]:
    """Yield bad numbers in tables: durations, samples, segments, speeds."""
    numbers = [
        "nan",
        "inf",
        "-inf",
        "-1",
        "0",
        "1e400",
        "x",
        "1_000",
        "٣",
        "0x10",
        "1 2",
    ]
    for number in numbers:
        for table, command in (
            ("utt2num_samples", "filter"),
            ("utt2num_samples", "statistics"),
            ("utt2num_samples", "examples"),
            ("utt2dur", "filter"),
            ("utt2dur", "statistics"),
            ("utt2speed", "format"),
        ):

            def build(
                place: Place, number=number, table=table, command=command
            ) -> list[str]:
                folder, line, _ = COMMANDS[command]
                if table == "utt2dur":
                    (place.folder / folder / "utt2num_samples").unlink()
                rows = dict.fromkeys(UTTERANCES, "1.0")
                if table == "utt2num_samples":
                    rows = dict.fromkeys(UTTERANCES, "8000")
                rows["a-2"] = number
                write_rows(place.folder / folder / table, rows)
                return line

            def dropped(outcome: Outcome) -> str:
                told = outcome.place.folder / "new" / "dropped.tsv"
                found = told.exists() and "a-2" in told.read_text()
                return "" if found else "a-2 is not listed"

            plain = number == "0" and table in ("utt2num_samples", "utt2dur")
            check = either(refused(), passes(dropped))
            if plain or number in ("1_000", "٣"):  # Python reads both as numbers
                check = either(check, passes())
            yield Case(
                "numbers in tables", f"{command}: {table} {number}", build, check
            )
        for place_of in (0, 1):
            times = ["0.1", "0.4"]
            times[place_of] = number
            if number == "0" and place_of == 0:
                continue

            def build(place: Place, times=tuple(times)) -> list[str]:
                folder, line, _ = COMMANDS["format segments"]
                rows = {n: f"r{n} 0.1 0.4" for n in UTTERANCES}
                rows["a-2"] = f"ra-2 {' '.join(times)}"
                write_rows(place.folder / folder / "segments", rows)
                return line

            name = f"format: segment {' '.join(times)}"

            def dropped(outcome: Outcome) -> str:
                told = (outcome.place.folder / "new" / "dropped.tsv").read_text()
                return "" if "a-2" in told else "a-2 is not listed"

            check = either(refused("segments"), passes(dropped))
            yield Case("numbers in tables", name, build, check)


def score_files() -> Iterator[Case]:
    """Yield damaged ``scores.json`` for the report."""
    row = {
        "metric": "wer", "value": 12.5, "task": "asr", "language": "en",
        "target_language": "en", "utterances": 3,
    }  # fmt: skip
    contents = {
        "empty": "", "null": "null", "a number": "5", "a text": '"x"',
        "a mapping": "{}",
        "cut": json.dumps([row])[:-9], "a list of lists": "[[]]",
        "rows of null": "[null]",
        "NaN": json.dumps([{**row, "value": float("nan")}]),
        "a text as value": json.dumps([{**row, "value": "x"}]),
        "null as value": json.dumps([{**row, "value": None}]),
        "a list as metric": json.dumps([{**row, "metric": ["wer"]}]),
        "a number as task": json.dumps([{**row, "task": 5}]),
        "null as language": json.dumps([{**row, "language": None}]),
        "text as utterances": json.dumps([{**row, "utterances": "x"}]),
        "text as substitutions": json.dumps([{**row, "substitutions": "x"}]),
        "deep": "[" * 100000, "UTF-16": json.dumps([row]).encode("utf-16"),
        "Latin-1": b'[{"metric": "\xe9"}]', "BOM": "\ufeff" + json.dumps([row]),
    }  # fmt: skip
    for name, content in contents.items():

        def build(place: Place, content=content) -> list[str]:
            place.write("exp/sys/decode/test/score_asr_en/scores.json", content)
            return ["speechllm.bin.report", "--exp_root", "exp", "--output", "RESULTS"]

        check = passes() if name == "BOM" else refused("scores.json")
        yield Case("score files", name, build, either(check, refused("scores.json")))

    def folder(place: Place) -> list[str]:
        path = place.folder / "exp/sys/decode/test/score_asr_en/scores.json"
        path.unlink()
        path.mkdir()
        return ["speechllm.bin.report", "--exp_root", "exp", "--output", "RESULTS"]

    yield Case("score files", "a folder", folder, refused("scores.json"))
