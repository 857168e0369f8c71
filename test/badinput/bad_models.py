"""Damaged model folders, and folders of strangers with planted code."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from bad_base import copy_model, edit, to_fifo, to_folder
from bad_case import Case, Place, either, passes, refused

#: Files of the model folder and the name that a message must have.
FILES = (
    "config.yaml",
    "model.safetensors",
    "tokens.txt",
    "prompts.yaml",
    "encoder/config.json",
    "encoder/model.safetensors",
    "llm/config.json",
    "llm/model.safetensors",
    "llm/tokenizer.json",
    "llm/tokenizer_config.json",
)
OPTIONAL = ("confidence.json", "guard.yaml", "llm/generation_config.json")


class Planted:
    """An object whose unpickling writes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def planted_pickle(path: Path) -> bytes:
    """Return a torch checkpoint that runs a command when it is unpickled."""
    import torch

    stream = io.BytesIO()
    torch.save({"state": Planted(str(path))}, stream)
    return stream.getvalue()


def damages() -> dict[str, Callable[[Path], object]]:
    """Return functions that damage a file of a model folder."""

    def flip(path: Path, seed: int) -> None:
        generator = np.random.default_rng(seed)
        data = bytearray(path.read_bytes())
        for place in generator.integers(0, min(len(data), 400), 3):
            data[place] ^= 0x55
        path.write_bytes(bytes(data))

    def link(path: Path) -> None:
        path.unlink()
        os.symlink(path.name, path)

    return {
        "missing": lambda path: path.unlink(),
        "empty": lambda path: path.write_bytes(b""),
        "cut in half": lambda path: edit(path, lambda d: d[: len(d) // 2]),
        "cut by 10 bytes": lambda path: edit(path, lambda d: d[:-10]),
        "random bytes": lambda path: path.write_bytes(bytes(range(256)) * 9),
        "zeros": lambda path: edit(path, lambda d: bytes(len(d))),
        "a page of HTML": lambda path: path.write_text("<!DOCTYPE html><html>404"),
        "an LFS pointer": lambda path: path.write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64
            + "\nsize 5\n"
        ),
        "JSON null": lambda path: path.write_text("null"),
        "a JSON list": lambda path: path.write_text("[1, 2]"),
        "an empty mapping": lambda path: path.write_text("{}"),
        "a folder": to_folder,
        "a FIFO": to_fifo,
        "a link to itself": link,
        "flipped head, seed 0": lambda path: flip(path, 0),
        "flipped head, seed 1": lambda path: flip(path, 1),
    }  # fmt: skip


def transcribe(model: str = "model") -> list[str]:
    """Return the arguments that use a model folder."""
    return [
        "speechllm.cli", "transcribe", "good.wav", "--format", "json", "--model", model,
    ]  # fmt: skip


def cases() -> Iterator[Case]:
    """Yield damaged folders, weights and configs, and planted code."""
    for file in FILES:
        for damage, change in damages().items():

            def build(place: Place, file=file, change=change) -> list[str]:
                copy_model(place.model, place.folder / "model")
                change(place.folder / "model" / file)
                return transcribe()

            name = Path(file).name
            check = refused()
            if file == "llm/tokenizer_config.json" or damage.startswith("flip"):
                check = either(refused(), passes())
            elif file == "tokens.txt" and damage.startswith("cut"):
                check = refused("model")  # a sound list of fewer tokens
            elif name.endswith((".safetensors", ".yaml", ".txt")):
                check = refused(name)
            yield Case("model folders", f"{file}, {damage}", build, check)
        if file.endswith((".json", ".safetensors", ".yaml")):

            def build(place: Place, file=file) -> list[str]:
                copy_model(place.model, place.folder / "model")
                os.chmod(place.folder / "model" / file, 0)
                return transcribe()

            check = refused(Path(file).name)
            yield Case(
                "model folders", f"{file}, unreadable", build, check, user_id=65534
            )
    for file in OPTIONAL[:1]:
        for damage, change in damages().items():
            if damage == "missing":
                continue

            def build(place: Place, file=file, change=change) -> list[str]:
                copy_model(place.model, place.folder / "model")
                place.write(f"model/{file}", '{"weights": [1, 2, 3], "bias": 0}')
                change(place.folder / "model" / file)
                return [*transcribe(), "--words"]

            yield Case("model folders", f"{file}, {damage}", build, refused(file))
    yield from weights()
    yield from config_values()
    yield from planted()
    yield from not_models()


def weights() -> Iterator[Case]:
    """Yield weights of other shapes, names, types, and values that are no numbers."""

    def changed(
        file: str, change: Callable[[dict], dict]
    ) -> Callable[[Place], list[str]]:
        def build(place: Place) -> list[str]:
            from safetensors.torch import load_file, save_file

            copy_model(place.model, place.folder / "model")
            path = place.folder / "model" / file
            save_file(change(load_file(path)), path, metadata={"format": "pt"})
            return transcribe()

        return build

    def first(tensors: dict, change: Callable) -> dict:
        name = sorted(tensors)[len(tensors) // 2]
        return {**tensors, name: change(tensors[name]).contiguous()}

    def all_of(tensors: dict, change: Callable) -> dict:
        return {name: change(tensor).contiguous() for name, tensor in tensors.items()}

    changes: dict[str, Callable[[dict], dict]] = {
        "NaN in one tensor": lambda t: first(t, lambda x: x * float("nan")),
        "infinity in one tensor": lambda t: first(t, lambda x: x + float("inf")),
        "NaN in all": lambda t: all_of(t, lambda x: x * float("nan")),
        # the first one of the encoder is of Whisper's decoder, which is not used
        "one tensor less": lambda t: dict(sorted(t.items())[:-1]),
        "one tensor flat": lambda t: first(t, lambda x: x.reshape(-1)[:-1]),
        "no tensor": lambda t: {},
        "other names": lambda t: {f"x.{k}": v for k, v in t.items()},
    }
    for file in (
        "model.safetensors",
        "encoder/model.safetensors",
        "llm/model.safetensors",
    ):
        for name, change in changes.items():
            yield Case("weights", f"{file}, {name}", changed(file, change), refused())

    def swapped(place: Place) -> list[str]:
        copy_model(place.model, place.folder / "model")
        encoder = place.folder / "model/encoder/model.safetensors"
        llm = place.folder / "model/llm/model.safetensors"
        data = encoder.read_bytes()
        shutil.copy(llm, encoder)
        llm.write_bytes(data)
        return transcribe()

    yield Case("weights", "encoder and LLM exchanged", swapped, refused())


def config_values() -> Iterator[Case]:
    """Yield bad values in the exported ``config.yaml``."""
    import yaml

    for key, values in {
        "encoder": ("foo", 5, [], None),
        "encoder_conf": ([], 5, {"model": 5}, {"model": "no-such"}, {"foo": 1}),
        "bridge": ("foo", 5, []),
        "bridge_conf": ([], 5, {"foo": 1}, {"kernel_size": 0}, {"kernel_size": "x"}),
        "llm": ("foo", 5, []),
        "llm_conf": ([], 5, {"model": "no-such"}, {"foo": 1}, {"lora": 5},
                     {"lora": {"r": -1}}),
        "model_conf": ([], 5, {"foo": 1}, {"ctc_weight": "x"}, {"ctc_weight": 7}),
        "stands_on": ([], 5, {"model": 5}),
    }.items():  # fmt: skip
        for value in values:

            def build(place: Place, key=key, value=value) -> list[str]:
                copy_model(place.model, place.folder / "model")
                path = place.folder / "model/config.yaml"
                config = yaml.safe_load(path.read_text())
                merge = isinstance(value, dict) and isinstance(config.get(key), dict)
                config[key] = {**config[key], **value} if merge else value
                path.write_text(yaml.safe_dump(config))
                return transcribe()

            check = refused()
            if key == "stands_on" and isinstance(value, dict):
                check = either(refused(), passes())
            yield Case("model config.yaml", f"{key}: {value!r}", build, check)

    def swapped(place: Place) -> list[str]:
        copy_model(place.model, place.folder / "model")
        from speechllm.pretrained.identity import model_identity

        path = place.folder / "model/config.yaml"
        config = yaml.safe_load(path.read_text())
        folder = place.folder / "model/llm"
        config["stands_on"] = {str(folder): model_identity(folder, True)}
        path.write_text(yaml.safe_dump(config))
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        vocabulary = tokenizer["model"]["vocab"]
        a, b = list(vocabulary)[1000:1002]
        vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        return transcribe()

    cache = "model/llm/.speechllm_fingerprint.json"
    yield Case(
        "model config.yaml", "two token ids swapped", swapped, refused("llm"), (cache,)
    )


def planted() -> Iterator[Case]:
    """Yield folders with code that must not run."""

    def pickled(file: str, remove: str) -> Callable[[Place], list[str]]:
        def build(place: Place) -> list[str]:
            copy_model(place.model, place.folder / "model")
            (place.folder / "model" / remove).unlink()
            path = place.folder / "model" / file
            path.write_bytes(planted_pickle(place.planted))
            return transcribe()

        return build

    for file, remove in (
        ("model.pth", "model.safetensors"),
        ("pytorch_model.bin", "model.safetensors"),
        ("encoder/pytorch_model.bin", "encoder/model.safetensors"),
        ("llm/pytorch_model.bin", "llm/model.safetensors"),
    ):
        build = pickled(file, remove)
        yield Case("planted code", f"pickle as {file}", build, refused())
    for file in ("model.safetensors", "llm/model.safetensors", "tokens.txt"):
        build = pickled(file, file)
        yield Case("planted code", f"pickle named {file}", build, refused())

    code = "import pathlib\npathlib.Path({path!r}).touch()\n"
    for part in ("llm", "encoder"):
        for kind in ("model", "config", "tokenizer"):
            if (part, kind) == ("encoder", "tokenizer"):
                continue
            for answer in (b"", b"y\n" * 20):

                def build(place: Place, part=part, kind=kind) -> list[str]:
                    copy_model(place.model, place.folder / "model")
                    folder = place.folder / "model" / part
                    text = code.format(path=str(place.planted))
                    (folder / "evil.py").write_text(text)
                    file = (
                        "tokenizer_config.json"
                        if kind == "tokenizer"
                        else "config.json"
                    )
                    config = json.loads((folder / file).read_text())
                    if kind == "tokenizer":
                        config["auto_map"] = {"AutoTokenizer": ["evil.Evil", None]}
                        config["tokenizer_class"] = "Evil"
                    else:
                        config["auto_map"] = {
                            "AutoConfig": "evil.Evil", "AutoModel": "evil.Evil",
                            "AutoModelForCausalLM": "evil.Evil",
                        }  # fmt: skip
                        if kind == "config":
                            config["model_type"] = "evil"
                    (folder / file).write_text(json.dumps(config))
                    return transcribe()

                said = "with yes on standard input" if answer else "alone"
                yield Case(
                    "planted code", f"auto_map of {part}'s {kind}, {said}", build,
                    either(refused(), passes()), stdin=lambda answer=answer: answer,
                    seconds=25,
                )  # fmt: skip

    def template(place: Place) -> list[str]:
        copy_model(place.model, place.folder / "model")
        path = place.folder / "model/llm/tokenizer_config.json"
        config = json.loads(path.read_text())
        command = "().__class__.__base__.__subclasses__()"
        config["chat_template"] = "{{ " + command + " }}"
        path.write_text(json.dumps(config))
        return transcribe()

    check = either(refused(), passes())
    yield Case("planted code", "chat template with Python", template, check)

    def resumed(place: Place) -> list[str]:
        from bad_configs import training_case

        line = training_case("resume", {"max_epoch": 2}, "x").build(place)
        (place.folder / "new").mkdir()
        data = planted_pickle(place.planted)
        (place.folder / "new" / "checkpoint.pth").write_bytes(data)
        return [*line, "--resume", "true"]

    yield Case(
        "planted code", "checkpoint.pth on resume", resumed, refused("checkpoint")
    )

    def initial(place: Place) -> list[str]:
        from bad_configs import training_case

        line = training_case("init", {}, "x").build(place)
        place.write("init.pth", planted_pickle(place.planted))
        return [*line, "--init_param", "init.pth"]

    yield Case("planted code", "init_param", initial, refused("init.pth"))

    def exported(place: Place) -> list[str]:
        folder = place.folder / "exp" / "new"
        folder.mkdir()
        (folder / "config.yaml").write_text((place.model / "config.yaml").read_text())
        (folder / "valid.acc.ave.pth").write_bytes(planted_pickle(place.planted))
        return ["speechllm.bin.export_model", "--exp_dir", "exp/new", "--output", "new"]

    yield Case("planted code", "checkpoint of export", exported, refused())
    for tag in ("!!python/object/apply:os.system ['touch {path}']",
                "!!python/name:os.system",
                "!!python/object/new:os.system [touch]"):  # fmt: skip
        for file in ("config.yaml", "prompts.yaml", "guard.yaml"):

            def build(place: Place, tag=tag, file=file) -> list[str]:
                copy_model(place.model, place.folder / "model")
                text = "a: " + tag.format(path=place.planted) + "\n"
                place.write(f"model/{file}", text)
                return transcribe()

            yield Case(
                "planted code", f"{file}: {tag.split()[0]}", build, refused(file)
            )


def not_models() -> Iterator[Case]:
    """Yield what ``--model`` names and is not a model folder."""
    for name in ("no-such", "good.wav", "wav", "data", "exp", ".", "/", "", " ",
                 "no/such/model", "a" * 300, "http://127.0.0.1:{port}/m",
                 "model\nb", "~", "hub/id@main", "-x", "日本/モデル",
                 "/dev/null"):  # fmt: skip

        def build(place: Place, name=name) -> list[str]:
            return transcribe(name.format(port=place.port))

        yield Case("not models", repr(name[:40]), build, refused(), seconds=25)
