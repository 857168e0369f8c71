"""Bad values of every option of every command."""

from __future__ import annotations

import argparse
import functools
import importlib
import pkgutil
from collections.abc import Iterator

from bad_case import Case, Check, Outcome, Place, either, passes, refused
from bad_outputs import COMMANDS as OUTPUTS
from bad_outputs import prepared
from bad_tables import COMMANDS as TABLES

NUMBERS = ("nan", "inf", "-inf", "-1", "0", "1e400", "x", "", "1.5", "9" * 30, "٣")
TEXTS = ("", "no-such", "../../x", "a\nb", "x" * 5000, "日本")


def parser_of(module: str, first: str) -> argparse.ArgumentParser:
    """Return the parser of a command, of its subcommand if it has any."""
    if module == "speechllm.bin.prepare_data":
        corpus = importlib.import_module(f"speechllm.corpora.{first}")
        parser = argparse.ArgumentParser(prog="python -m speechllm.bin.prepare_data")
        corpus.add_arguments(parser)
        return parser
    parser = importlib.import_module(module).get_parser()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action.choices[first]
    return parser


@functools.cache
def command_lines() -> dict[str, list[str]]:
    """Return sound arguments of each command that runs in seconds."""
    found = {}
    for name, (line, _, _) in OUTPUTS.items():
        if name in ("transcribe to json", "transcribe to srt", "unpack --force"):
            continue  # the same options again
        module = "speechllm.cli" if line[0] == "cli" else f"speechllm.bin.{line[0]}"
        found[name] = [module, *line[1:]]
    for name in ("validate", "score", "compare"):
        found[name] = TABLES[name][1]
    found["check_prompts"] = [
        "speechllm.bin.check_prompts", "--config", "train.yaml", "--prompts",
        "prompts.yaml", "--examples", "examples",
    ]  # fmt: skip
    found["fetch_models"] = ["speechllm.bin.fetch_models", "MODEL/llm"]
    found["guard_thresholds"] = [
        "speechllm.bin.guard_thresholds", "--model", "copy", "--examples", "examples",
    ]  # fmt: skip
    found["calibrate"] = [
        "speechllm.bin.calibrate", "--model", "copy", "--examples", "examples",
    ]  # fmt: skip
    found["guard_table"] = [
        "speechllm.bin.guard_table", "--model", "copy", "--examples", "examples",
    ]  # fmt: skip
    found["estimate"] = ["speechllm.cli", "estimate", "--config", "train.yaml"]
    found["to_nue_asr"] = [
        "speechllm.cli", "to_nue_asr", "--model", "MODEL", "--output", "OUT",
    ]  # fmt: skip
    found["upload"] = [
        "speechllm.bin.upload", "--model", "MODEL", "--repo_id", "no/such",
    ]  # fmt: skip
    for system in ("whisper", "llm"):
        found[f"baseline {system}"] = [
            "speechllm.bin.baseline", system, "--examples", "examples", "--output",
            "OUT", "--model", "no-such",
        ]  # fmt: skip
    found["finetune_whisper"] = [
        "speechllm.bin.finetune_whisper", "--model", "no-such", "--examples",
        "examples", "--valid", "examples", "--output", "OUT",
    ]  # fmt: skip
    llm = found["baseline llm"]
    llm += ["--transcripts", "examples", "--train_examples", "examples"]
    return found


def arguments(place: Place, name: str, line: list[str]) -> list[str]:
    """Write what a command needs and return its sound arguments."""
    if name in OUTPUTS:
        return prepared(place, name, "new")
    if "copy" in line:
        from bad_base import copy_model

        copy_model(place.model, place.folder / "copy")
    if "train.yaml" in line:
        import yaml
        from bad_configs import training_config

        place.write("train.yaml", yaml.safe_dump(training_config(place)))
    words = {"OUT": "new", "MODEL": str(place.model), "MODEL/llm": f"{place.model}/llm"}
    return [words.get(word, word) for word in line]


def cases() -> Iterator[Case]:
    """Yield bad values of each option of each command, and bad command lines."""
    for name, line in command_lines().items():
        parser = parser_of(line[0], line[1])
        for action in parser._actions:
            if not action.option_strings or action.nargs == 0:
                continue
            if isinstance(action, argparse.BooleanOptionalAction):
                continue
            option = action.option_strings[0]
            yield from option_cases(name, line, option, action)
        for extra in (["--no_such_option"], ["--no_such_option", "1"]):
            yield line_case(name, line, extra, f"{' '.join(extra)}", refused(extra[0]))
    for module in bins():
        for extra in ([], ["--no-such"], ["no-such"], ["--help", "x"]):
            given = [module, *extra]
            yield Case(
                "command lines", f"{module}: {extra}", lambda place, g=given: g,
                either(refused(), helped) if "--help" in extra else refused(),
            )  # fmt: skip


def helped(outcome: Outcome) -> str:
    """Check that a help was printed."""
    return passes()(outcome) if "usage:" in outcome.out else "silent: no help"


def does_not_fit(outcome: Outcome) -> str:
    """Check for the answer of ``speechllm estimate`` that a GPU is too small."""
    told = outcome.status == 1 and "\ndoes not fit into " in outcome.out
    return "" if told else "wrong: no answer"


def bins() -> list[str]:
    """Return the modules of all commands that require arguments."""
    import speechllm.bin

    names = [m.name for m in pkgutil.iter_modules(speechllm.bin.__path__)]
    optional = {"report", "benchmark_data", "benchmark_long_form", "speechllm_train"}
    return [f"speechllm.bin.{n}" for n in names if n not in optional] + [
        "speechllm.cli"
    ]


def option_cases(
    name: str, line: list[str], option: str, action: argparse.Action
) -> Iterator[Case]:
    """Yield bad values of one option."""
    number = action.type in (int, float)
    for value in NUMBERS if number else TEXTS:
        check: Check = either(refused(), passes(), does_not_fit)
        if (
            number
            and value in ("nan", "x", "", "1e400", "9" * 30)
            and not (option.startswith("--max_") and value == "1e400")  # no limit
            and not (option == "--max_text_length" or value == "9" * 30)
        ):
            check = refused()
        if action.type is int and value in ("1.5", "inf", "-inf"):
            check = refused()
        if action.choices:
            check = refused(option)
        yield line_case(name, line, [option, value], f"{option} {value[:20]!r}", check)
    if not number and not action.choices and "output" not in option:
        for value in ("wav", "good.wav", "/dev/null"):
            check = either(refused(), passes())
            yield line_case(name, line, [option, value], f"{option} {value}", check)
    yield line_case(name, line, [option], f"{option} without value", refused(option))


def line_case(
    name: str, line: list[str], extra: list[str], label: str, check: Check
) -> Case:
    """Return the case of a command line with more arguments, which override."""

    def build(place: Place) -> list[str]:
        return [*arguments(place, name, line), *extra]

    may_change = ("copy/guard.yaml", "exp/sys/decode/test/score_asr_en*")
    return Case("options", f"{name}: {label}", build, check, may_change, seconds=30)
