"""Bad values in decoding, training and guard configs, and damaged YAML."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import yaml
from bad_base import copy_model
from bad_case import Case, Place, either, passes, refused
from tiny_models import TRAINING

NAN, INF = float("nan"), float("inf")
VALUES: tuple[Any, ...] = (
    NAN, INF, -INF, -1, 0, 1.5, 1e300, 10**30, "foo", "", [], [1], {}, {"a": 1}, True,
    None, "1",
)  # fmt: skip

#: Decoding options: kind, smallest and largest value. "beam" is limited to keep the
#: sound values fast.
DECODING = {
    "beam_size": (int, 1, 100), "nbest": (int, 1, 100), "batch_size": (int, 1, 10**5),
    "pre_beam_size": (int, 1, 10**5), "ctc_weight": (float, 0, 1),
    "penalty": (float, -1e4, 1e4), "label_bonus": (float, -1e4, 1e4),
    "tokens_per_second": (float, 0, 1e3), "extra_tokens": (float, 0, 1e4),
    "min_tokens": (int, 0, 1000), "no_repeat_ngram_size": (int, 0, 1000),
    "rescore_ctc_weight": (float, 0, 1), "guard": (bool, 0, 1),
    "word_times": (bool, 0, 1), "sampling": (bool, 0, 1),
    "temperature": (float, 1e-6, 1e4), "top_k": (int, 0, 10**6),
    "top_p": (float, 1e-9, 1), "seed": (int, 0, 2**63), "dtype": (str, 0, 0),
    "engine": (str, 0, 0),
}  # fmt: skip
DECODE = [
    "speechllm.bin.decode", "--examples", "examples", "--output_dir", "new",
    "--config", "bad.yaml", "--model",
]  # fmt: skip
#: Not YAML, or not a mapping of options.
TEXTS = {
    "a tab": "beam_size:\t2\n\tnbest: 1\n",
    "a list": "- 1\n- 2\n",
    "a text": "just text\n",
    "a number": "5\n",
    "a python tag": "a: !!python/object/apply:os.system ['touch planted.txt']\n",
    "two documents": "beam_size: 2\n---\nbeam_size: 3\n",
    "a key twice": "beam_size: 2\nbeam_size: 3\n",
    "an alias to nothing": "beam_size: *a\n",
    "open brackets": "beam_size: [\n",
    "a NUL": "beam_size: 2\0\n",
    "UTF-16": "beam_size: 2\n".encode("utf-16"),
    "Latin-1": b"beam_size: 2 # \xe9\n",
    "random bytes": bytes(range(256)),
    "a key of a number": "5: 2\n",
    "a key of null": "null: 2\n",
    "a key of a list": "? [a]\n: 2\n",
    "an unknown key": "beam_sise: 2\n",
    "aliases that explode": "a: &a [x, x]\n"
    + "".join(
        f"{c}: &{c} [{', '.join([f'*{p}'] * 9)}]\n"
        for p, c in zip("abcdefg", "bcdefgh")
    ),
    "deep brackets": "a: " + "[" * 5000 + "\n",
    "a date": "beam_size: 2020-01-01\n",
    "sexagesimal": "batch_size: 1:30\n",
    "octal": "beam_size: 0o2\n",
}


def fits(kind: type, low: float, high: float, value: Any) -> bool:
    """Return whether a value has a kind and lies in a range."""
    if kind is bool:
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    if kind is int and not isinstance(value, int):
        return False
    return math.isfinite(value) and low <= value <= high


def cases() -> Iterator[Case]:
    """Yield the configs of decoding, guard and training."""
    yield from decoding()
    yield from guard()
    yield from training()
    yield from prompts()


def decoding() -> Iterator[Case]:
    """Yield each bad value of each option of decoding, and damaged files."""
    for name, (kind, low, high) in DECODING.items():
        for value in VALUES:

            def build(place: Place, name=name, value=value) -> list[str]:
                options = {name: value}
                if name in ("nbest",) and value == 1.5:
                    options["beam_size"] = 2
                place.write("bad.yaml", yaml.safe_dump(options))
                return [*DECODE, str(place.model)]

            check = refused(name)
            if value is None or fits(kind, low, high, value):
                check = either(refused(name), passes())
            yield Case(
                "decoding configs", f"{name}: {value!r}", build, check, seconds=20
            )
    for name, text in TEXTS.items():

        def build(place: Place, text=text) -> list[str]:
            place.write("bad.yaml", text)
            return [*DECODE, str(place.model)]

        check = refused()
        if name in ("a key twice", "sexagesimal"):
            check = either(refused(), passes())
        yield Case("decoding configs", name, build, check, seconds=20)


def guard() -> Iterator[Case]:
    """Yield bad values in ``guard.yaml``."""
    group = {
        "rate": 30.0, "least_expansion": 0.1, "most_expansion": 9.0, "repetition": 3,
        "distance": 5.0, "doubt": 100.0,
    }  # fmt: skip
    whole = {"clarity": 0.1, "ctc_weight": 0.3, "groups": {"asr_en": group}}
    transcribe = ["speechllm.cli", "transcribe", "good.wav", "--model", "model"]

    def case(name: str, content: Any, may_pass: bool = False) -> Case:
        def build(place: Place) -> list[str]:
            copy_model(place.model, place.folder / "model")
            text = (
                content
                if isinstance(content, (str, bytes))
                else yaml.safe_dump(content)
            )
            place.write("model/guard.yaml", text)
            return transcribe

        check = refused("guard.yaml")
        if may_pass:
            check = either(check, passes())
        return Case("guard.yaml", name, build, check)

    for value in (NAN, INF, -1, "foo", [], {}, True, 7, None):
        for key in ("clarity", "ctc_weight"):
            if value != 7 or key == "ctc_weight":
                yield case(f"{key}: {value!r}", {**whole, key: value})
        for key in group:
            if value in (7, None):
                continue
            changed = {**whole, "groups": {"asr_en": {**group, key: value}}}
            # an infinite limit is none; the distance is negative if CTC prefers the
            # references of the development set to its own greedy transcripts
            may_pass = value == INF or (key, value) == ("distance", -1)
            yield case(f"{key}: {value!r}", changed, may_pass)
    for name, text in TEXTS.items():
        yield case(f"text: {name}", text)
    for name, content in {
        "no groups": {**whole, "groups": {}},
        "groups of a list": {**whole, "groups": []},
        "a group of null": {**whole, "groups": {"asr_en": None}},
        "an unknown key": {**whole, "foo": 1},
        "an unknown limit": {**whole, "groups": {"asr_en": {**group, "foo": 1}}},
        "no rate": {**whole, "groups": {"asr_en": {}}},
        "empty": {},
    }.items():
        yield case(name, content)


def training() -> Iterator[Case]:
    """Yield bad values in training configs."""
    bad: dict[str, tuple] = {
        "max_epoch": (NAN, 1.5, -1, "foo", [], None),
        "batch_size": (0, -1, 1.5, "foo", NAN, [], True),
        "batch_type": ("foo", 5, None, []),
        "accum_grad": (0, -1, 1.5, "foo", NAN, [], True),
        "grad_clip": (NAN, -1, "foo", [], {}),
        "optim": ("foo", 5, None, []),
        "optim_conf": ({"lr": "6e-4x"}, {"lr": NAN}, {"lr": -1}, {"lr": INF},
        {"foo": 1},
                       {"lr": []}, {"betas": 5}, {"betas": [2, 3]},
                       {"weight_decay": -1}, {"weight_decay": NAN}, [], "foo", 5),
        "scheduler": ("foo", 5, []),
        "scheduler_conf": ({"foo": 1}, {"max_steps": -1}, {"max_steps": "x"},
                           {"max_steps": NAN}, [], 5, "x"),
        "train_dtype": ("foo", 5, []),
        "keep_nbest_models": (-1, "foo", NAN, 1.5, {}),
        "best_model_criterion": ("foo", [["valid", "loss", "foo"]],
                                 [["foo", "loss", "min"]], [["valid", "loss"]], [5], 5),
        "num_workers": (-1, 1.5, "foo", NAN, []),
        "seed": (NAN, 1.5, "foo", -1, []),
        "log_interval": (0, -1, "foo", 1.5),
        "encoder": ("foo", 5, None, [], {}),
        "encoder_conf": ({"model": "no-such"}, {"model": 5}, {"model": []}, {"foo": 1},
                         {"layer": 99}, {"layer": "foo"}, {"layer": NAN}, {}, [], 5),
        "bridge": ("foo", 5, []),
        "bridge_conf": ({"foo": 1}, {"kernel_size": 0}, {"stride": 0}, [], 5),
        "llm": ("foo", 5, []),
        "llm_conf": ({"model": "no-such"}, {"model": 5}, {"foo": 1}, {"dtype": "foo"},
                     {"lora": {"r": -1}}, {"lora": {"r": 0}}, {"lora": {"foo": 1}},
                     {"lora": 5}, {"tuning": "foo"}, {"tuning": 5}, [], 5, {}),
        "model_conf": ({"ctc_weight": 7}, {"ctc_weight": NAN}, {"ctc_weight": "x"},
                       {"ctc_weight": -1}, {"foo": 1}, {"feature_dropout": 2},
                       {"feature_dropout": NAN}, [], 5),
        "ctc_conf": ({"foo": 1}, {"dropout_rate": 7}, [], 5),
        "lr_scales": ({"encoder": NAN}, {"encoder": -1}, {"encoder": "x"}, {"foo": 1},
        5),
        "foo": (1,),
        "ngpu": (-1, "foo", 1.5),
        "num_processes": (0, "foo", 1.5),
        "save_every": ("foo", 5, -1, "0 steps"),
        "patience": (-1, "foo", 1.5, NAN),
        "num_iters_per_epoch": (0, -1, "foo", 1.5),
        "init_param": (["no-such.pth"], "no-such.pth", 5, [5]),
        "resume": ("foo", 5),
        "use_amp": ("foo", 5),
    }  # fmt: skip
    for key, given in bad.items():
        for value in given:
            yield training_case(f"{key}: {value!r}", {key: value}, key)
    for name, text in TEXTS.items():
        if name not in ("a key twice", "octal", "sexagesimal", "a date"):
            yield training_case(f"text: {name}", text, "bad.yaml")


def training_config(place: Place) -> dict:
    """Return a sound config of one step on the example dir."""
    return {
        "encoder": "whisper",
        "encoder_conf": {"model": str(place.model / "encoder")},
        "bridge": "convolution",
        "llm": "causal_lm",
        "llm_conf": {"model": str(place.model / "llm"), "dtype": "float32"},
        "model_conf": {"ctc_weight": 0.3},
        "max_epoch": 1,
        "keep_nbest_models": 1,
        **TRAINING,
    }


def training_case(name: str, change: dict | str | bytes, key: str) -> Case:
    """Return the case that trains with a changed config."""

    def build(place: Place) -> list[str]:
        if isinstance(change, dict):
            config = training_config(place)
            for option, value in change.items():
                old = config.get(option)
                merge = isinstance(old, dict) and isinstance(value, dict) and value
                config[option] = {**old, **value} if merge else value
            place.write("bad.yaml", yaml.safe_dump(config))
        else:
            place.write("bad.yaml", change)
        tokens = (place.model / "tokens.txt").read_text()
        place.write("tokens.txt", tokens)
        line = [
            "speechllm.bin.speechllm_train", "--config", "bad.yaml", "--output_dir",
            "new", "--ctc_token_list", "tokens.txt", "--prompts", "prompts.yaml",
        ]  # fmt: skip
        if key != "ngpu":
            line += ["--ngpu", "0"]
        for kind in ("train", "valid"):
            for file, label, form in (
                ("wav.scp", "speech", "sound"),
                ("text", "text", "text"),
                ("text_ctc", "text_ctc", "text"),
                ("utt2task", "task", "text"),
            ):
                line.append(f"--{kind}_data_path_and_name_and_type")
                line.append(f"examples/{file},{label},{form}")
            line += [f"--{kind}_shape_file", "examples/utt2num_samples"]
        return line

    names = [key]
    if isinstance(change, dict) and isinstance(change.get(key), dict):
        for inner, value in change[key].items():
            names += [inner, *(value if isinstance(value, dict) else [str(value)])]
    check = either(*(refused(name) for name in names))
    return Case("training configs", name, build, check, seconds=60)


def prompts() -> Iterator[Case]:
    """Yield bad ``prompts.yaml`` for transcription."""
    contents: dict[str, Any] = {
        "empty": "", "a list": "- 1\n", "no tasks": "languages: {en: English}\n",
        "no languages": 'tasks: {asr: "{speech}"}\n',
        "no speech": 'languages: {en: English}\ntasks: {asr: "in {source}"}\n',
        "speech twice": 'languages: {en: E}\ntasks: {asr: "{speech}{speech}"}\n',
        "an unknown field": 'languages: {en: E}\ntasks: {asr: "{speech}{foo}"}\n',
        "attribute access":
            'languages: {en: E}\ntasks: {asr: "{speech}{source.__class__}"}\n',
        "an open brace": 'languages: {en: E}\ntasks: {asr: "{speech"}\n',
        "a number as prompt": "languages: {en: E}\ntasks: {asr: 5}\n",
        "null as prompt": "languages: {en: E}\ntasks: {asr: null}\n",
        "languages of a list": 'languages: [en]\ntasks: {asr: "{speech}"}\n',
        "tasks of a list": "languages: {en: E}\ntasks: [asr]\n",
        "a number as language":
            'languages: {en: 5}\ntasks: {asr: "{speech}{source}"}\n',
        "false as language code": 'languages: {no: N}\ntasks: {asr: "{speech}"}\n',
        "a path as language":
            'languages: {"../x": N}\ntasks: {asr: "{speech}{source}"}\n',
        "an unknown key": 'foo: 1\nlanguages: {en: E}\ntasks: {asr: "{speech}"}\n',
    }  # fmt: skip
    for name, text in {
        **contents,
        **{f"text: {k}": v for k, v in TEXTS.items()},
    }.items():

        def build(place: Place, text=text) -> list[str]:
            copy_model(place.model, place.folder / "model")
            place.write("model/prompts.yaml", text)
            return ["speechllm.cli", "transcribe", "good.wav", "--model", "model"]

        check = refused("prompts.yaml")
        if name in ("a number as language", "an unknown key"):
            check = either(check, passes())
        if name == "false as language code":  # YAML's no: the code of Norwegian
            check = passes()
        yield Case("prompts.yaml", name, build, check)
