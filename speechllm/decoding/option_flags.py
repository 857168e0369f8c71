"""Command-line flags of the search options."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from speechllm.decoding.options import ALIASES, SearchOptions
from speechllm.text.hotwords import read_hotwords

#: Description of each option in ``--help``; their defaults are added.
HELP = {
    "beam_size": "hypotheses in the beam, 1 is greedy search",
    "nbest": "hypotheses written in json",
    "ctc_weight": "weight of the CTC score, 0 to 1",
    "penalty": "score added per token",
    "pre_beam_size": "tokens per hypothesis that the CTC branch scores",
    "label_bonus": "score added per CTC label while hypotheses are compared",
    "tokens_per_second": "limits the output length, with extra_tokens",
    "extra_tokens": "tokens that an output may have in addition",
    "retry_truncated": "decode outputs that reach the limit again with twice the limit",
    "min_tokens": "minimum output length",
    "no_repeat_ngram_size": "no n-gram of this many tokens occurs twice, 0 allows all",
    "rescore_ctc_weight": "weight of the CTC score in rescoring the n-best list",
    "first_pass_beam_size": "hypotheses of Whisper's decoder that join the n-best "
    "list, 0: none",
    "rescore_decoder_weight": "weight of that decoder in ranking the list",
    "rescore_translation_weight": "its weight in ranking translations into English of "
    "asr_st, 0: it does not translate",
    "hotwords": "file of words to expect, one word or phrase per line",
    "hotword_bonus": "score added per token of a hotword",
    "guard": "check texts against the CTC output, as guard.yaml of the model says",
    "word_times": "compute word times, for json, ctm, TextGrid and subtitle cues",
    "sampling": "draw tokens instead of searching",
    "temperature": "temperature of sampling",
    "top_k": "sample from the k most probable tokens, 0: all",
    "top_p": "sample from the most probable tokens that sum to this probability",
    "seed": "seed of sampling",
}
#: Defaults that depend on the model or on other options.
DEPENDENT = {
    "hotwords": "none",
    "retry_truncated": "unless a limit is given",
    "rescore_decoder_weight": "the weights that stage 11 fitted",
    "rescore_translation_weight": "the weight that stage 11 fitted",
    "guard": "if the model has a guard.yaml",
}
#: Further names of flags.
SHORT = {"word_times": ["--words"]}


def add_device_flag(parser: argparse.ArgumentParser, default: str = "cpu") -> None:
    """Add ``--device``, for ``choose_device`` of ``speechllm.inference.loading``."""
    help = f"cpu, cuda, mps, or auto: a GPU if there is one [{default}]"
    parser.add_argument("--device", default=default, help=help)


def add_decoding_flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of a program that decodes examples for a measurement."""
    add = parser.add_argument
    add("--limit", type=int, help="number of examples, evenly spaced [all]")
    add("--config", metavar="FILE", help="decoding config, YAML [that of the model]")
    add("--batch_size", type=int, default=8, help="utterances decoded together [8]")
    add_device_flag(parser)


def add_search_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--config`` and a flag for every search option; their default is None."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="decoding config, YAML, in place of generation_config.yaml of the model "
        "folder; flags override both",
    )
    group = parser.add_argument_group(
        "search options", "The values in brackets hold where no config has the option."
    )
    old = {new: [f"--{name}"] for name, new in ALIASES.items()}
    for field in fields(SearchOptions):
        names = [
            f"--{field.name}",
            *old.get(field.name, ()),
            *SHORT.get(field.name, ()),
        ]
        kind = str(field.type).partition(" ")[0]
        action: dict[str, Any] = {"type": {"int": int, "float": float}.get(kind)}
        if field.name == "hotwords":
            action = {"metavar": "FILE"}
        default = DEPENDENT.get(field.name, str(field.default))
        if kind == "bool":
            action = {"action": argparse.BooleanOptionalAction, "default": None}
            default = {"True": "on", "False": "off"}.get(default, default)
        help = f"{HELP.get(field.name, field.name)} [{default}]"
        group.add_argument(*names, dest=field.name, help=help, **action)


def given_flags(args: argparse.Namespace, more: Iterable[str] = ()) -> dict[str, Any]:
    """Return the search options that the command line has.

    Args:
        more: names of further options.

    Raises:
        UserError: the file of hotwords cannot be read.
    """
    names = [field.name for field in fields(SearchOptions)] + list(more)
    values = {name: getattr(args, name) for name in names}
    given = {name: value for name, value in values.items() if value is not None}
    if "hotwords" in given:
        given["hotwords"] = read_hotwords(given["hotwords"])
    return given
