"""Bad hotwords, first passes, score weights, settings of a model, and precisions."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator

from bad_base import copy_model, to_folder
from bad_case import Case, Check, Place, either, listed, passes, refused
from bad_models import damages, planted_pickle, transcribe

MODEL_FILES = {
    "score_weights.json": '{"decoder": 0.5, "ctc": 0.2, "made_from": "x"}',
    "generation_config.yaml": "beam_size: 1\n",
    "guard.yaml": "ctc_confidence: 0.1\nctc_weight: 0.5\ngroups: {asr_en: {rate: 9}}\n",
}
FIRST_PASS = ("config.json", "model.safetensors", "tokenizer.json",
              "preprocessor_config.json", "generation_config.json")  # fmt: skip


def cases() -> Iterator[Case]:
    """Yield hotwords, files of the model folder, first passes and options."""
    yield from hotwords()
    yield from model_files()
    yield from first_passes()
    yield from options()


def hotwords() -> Iterator[Case]:
    """Yield files of hotwords, and hotwords of a config."""
    texts: dict[str, tuple[str | bytes, Check]] = {
        "empty": ("", refused("words.txt")),
        "blank lines": (" \n\t\n\n", refused("words.txt")),
        "comments": ("# a\n#b\n", refused("words.txt")),
        "not UTF-8": (b"\xff\xfe\x00", refused("words.txt")),
        "UTF-16": ("Asterisk\n".encode("utf-16"), refused("words.txt")),
        "a mark and CRLF": (b"\xef\xbb\xbfAsterisk\r\nhello\r\n", passes()),
        "NUL": ("a\0b\n", either(passes(), refused("words.txt"))),
        "a line of 100,000 letters": ("a" * 100_000 + "\n",
                                      either(passes(), refused("words.txt"))),
        "5,000 words": ("".join(f"word{n}\n" for n in range(5000)), passes()),
        "special tokens": ("<|im_end|>\n<|endoftext|>\n", either(passes(), refused())),
        "signs": ("!!!\n\u200b\n\u202e\n", passes()),
        "an image": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), refused("words.txt")),
    }  # fmt: skip
    line = ["--beam_size", "2", "--ctc_weight", "0.3", "--hotwords", "words.txt"]
    for name, (text, check) in texts.items():

        def build(place: Place, text=text) -> list[str]:
            place.write("words.txt", text)
            return [*transcribe(str(place.model)), *line]

        yield Case("hotwords", f"a file: {name}", build, check, seconds=60)

    def folder(place: Place) -> list[str]:
        to_folder(place.folder / place.write("words.txt", "a\n"))
        return [*transcribe(str(place.model)), *line]

    yield Case("hotwords", "a folder", folder, refused("words.txt"))
    for value in (
        "no-such.txt",
        "",
        "/dev/null",
        "http://127.0.0.1:{port}/w",
        "a" * 300,
    ):

        def named(place: Place, value=value) -> list[str]:
            given = value.format(port=place.port)
            return [*transcribe(str(place.model)), "--hotwords", given]

        yield Case("hotwords", f"--hotwords {value[:40]!r}", named, refused())
    for value in ("5", "[5]", "[[a]]", "{a: b}", "[null]", "[]", "['']", "Asterisk",
                  "[Asterisk, Asterisk]", "['a\\nb']", "[.nan]", "[true]"):  # fmt: skip

        def in_config(place: Place, value=value) -> list[str]:
            place.write("words.yaml", f"hotwords: {value}\nbeam_size: 2\n")
            return [*transcribe(str(place.model)), "--config", "words.yaml"]

        yield Case("hotwords", f"config: hotwords: {value}", in_config,
                   either(refused("hotwords"), passes()))  # fmt: skip
    for value in ("nan", "inf", "-1", "x", "1e300", ""):

        def bonus(place: Place, value=value) -> list[str]:
            place.write("words.txt", "Asterisk\n")
            return [*transcribe(str(place.model)), *line, "--hotword_bonus", value]

        yield Case("hotwords", f"--hotword_bonus {value!r}", bonus,
                   refused("hotword_bonus"))  # fmt: skip
    for extra, names in (
        (["--sampling"], ("sampling",)),
        (["--hotword_bonus", "3", "--beam_size", "1"], ()),
    ):

        def combined(place: Place, extra=extra) -> list[str]:
            place.write("words.txt", "Asterisk\n")
            return [*transcribe(str(place.model)), *line, *extra]

        check = refused(*names) if names else passes()
        yield Case("hotwords", f"with {' '.join(extra)}", combined, check)


def model_files() -> Iterator[Case]:
    """Yield damaged files that stages 10 and 11 add to a model folder."""
    for file, content in MODEL_FILES.items():
        for damage, change in damages().items():

            def build(place: Place, file=file, content=content, change=change):
                copy_model(place.model, place.folder / "model")
                place.write(f"model/{file}", content)
                change(place.folder / "model" / file)
                return transcribe()

            check = refused(file)
            if damage == "missing":
                check = passes()
            elif file == "generation_config.yaml" and damage in (
                "empty", "an empty mapping", "JSON null",
            ):  # fmt: skip
                check = passes()  # no settings
            elif damage.startswith(("flip", "cut")):
                check = either(check, passes())
            yield Case("model files", f"{file}: {damage}", build, check)
        for user in (65534,):

            def closed(place: Place, file=file, content=content) -> list[str]:
                copy_model(place.model, place.folder / "model")
                place.write(f"model/{file}", content)
                os.chmod(place.folder / "model" / file, 0)
                return transcribe()

            yield Case("model files", f"{file}: unreadable", closed, refused(file),
                       user_id=user)  # fmt: skip
    for value in ({"decoder": 2, "ctc": 0}, {"decoder": -1, "ctc": 0}, {"decoder": 0.5},
                  {"decoder": float("nan"), "ctc": 0}, {"decoder": "x", "ctc": 0},
                  {"decoder": None, "ctc": 0}, {"decoder": [], "ctc": {}}):  # fmt: skip

        def weights(place: Place, value=value) -> list[str]:
            copy_model(place.model, place.folder / "model")
            place.write("model/score_weights.json", json.dumps(value))
            return transcribe()

        yield Case("model files", f"score_weights.json: {value}", weights,
                   refused("score_weights.json"))  # fmt: skip


def write_first_pass(place: Place) -> None:
    """Write a model with a tiny Whisper of random weights as its first pass."""
    from tiny_baselines import write_tiny_whisper_decoder

    from speechllm.pretrained.resolve import resolve_model

    copy_model(place.model, place.folder / "model")
    whisper = resolve_model("openai/whisper-base")
    write_tiny_whisper_decoder(place.folder / "model" / "first_pass", whisper)


def first_passes() -> Iterator[Case]:
    """Yield damaged folders of the first pass."""
    line = [*transcribe(), "--first_pass_beam_size", "2"]

    def changed(change: Callable[[Place], object]) -> Callable[[Place], list[str]]:
        def build(place: Place) -> list[str]:
            write_first_pass(place)
            change(place)
            return line

        return build

    yield Case("first pass", "as it is", changed(lambda place: None), passes(),
               seconds=60)  # fmt: skip
    for file in FIRST_PASS:
        for damage, change in damages().items():

            def damaged(place: Place, file=file, change=change) -> None:
                path = place.folder / "model" / "first_pass" / file
                if path.exists():
                    change(path)

            check: Check = refused("first_pass")
            if damage.startswith("flip") or file in (
                "generation_config.json", "preprocessor_config.json",
            ):  # fmt: skip
                check = either(check, passes())
            yield Case("first pass", f"{file}: {damage}", changed(damaged), check,
                       seconds=60)  # fmt: skip

    def replaced(place: Place) -> None:
        import shutil

        shutil.rmtree(place.folder / "model" / "first_pass")
        place.write("model/first_pass", "a file")

    def dangling(place: Place) -> None:
        import shutil

        shutil.rmtree(place.folder / "model" / "first_pass")
        os.symlink("nowhere", place.folder / "model" / "first_pass")

    def emptied(place: Place) -> None:
        for path in (place.folder / "model" / "first_pass").iterdir():
            path.unlink()

    def an_llm(place: Place) -> None:
        import shutil

        folder = place.folder / "model" / "first_pass"
        shutil.rmtree(folder)
        shutil.copytree(place.model / "llm", folder)

    def pickled(place: Place) -> None:
        folder = place.folder / "model" / "first_pass"
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(planted_pickle(place.planted))

    def coded(place: Place) -> None:
        folder = place.folder / "model" / "first_pass"
        code = f"import pathlib\npathlib.Path({str(place.planted)!r}).touch()\n"
        (folder / "evil.py").write_text(code)
        own = {"AutoConfig": "evil.Evil", "AutoProcessor": "evil.Evil",
               "AutoTokenizer": ["evil.Evil", None],
               "AutoModelForSpeechSeq2Seq": "evil.Evil"}  # fmt: skip
        for name in ("config.json", "processor_config.json", "tokenizer_config.json",
                     "preprocessor_config.json"):  # fmt: skip
            path = folder / name
            content = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps({**content, "auto_map": own}))

    for name, change in {
        "a file": replaced,
        "a link to nothing": dangling,
        "an empty folder": emptied,
        "an LLM": an_llm,
        "pickled weights": pickled,
        "code of its own": coded,
    }.items():
        check = either(refused("first_pass"), passes())
        if name != "code of its own":
            check = refused("first_pass")
        yield Case("first pass", name, changed(change), check, seconds=60)


def options() -> Iterator[Case]:
    """Yield precisions, devices, tracks and languages that are not there."""
    given: dict[str, tuple[list[str], Check]] = {
        "4bit of layers with 32 inputs": (["--dtype", "4bit"], refused("4-bit")),
        "4-bit": (["--dtype", "4-bit"], refused("dtype")),
        "int8": (["--dtype", "int8"], refused("dtype")),
        "no dtype": (["--dtype", ""], refused("dtype")),
        "a GPU of this machine": (["--device", "cuda"], refused("cuda")),
        "a ninth GPU": (["--device", "cuda:8"], refused("cuda:8")),
        "an Apple GPU": (["--device", "mps"], refused("mps")),
        "another device": (["--device", "abacus"], refused("abacus")),
        "track 0": (["--track", "0"], refused("track")),
        "track -1": (["--track", "-1"], refused("track")),
        "track 9": (["--track", "9"], listed(["good.wav"], {})),
        "language auto": (["--language", "auto"], refused("--language auto")),
        "language xx": (["--language", "xx"], refused("xx")),
        "no language": (["--language", ""], refused()),
        "task st": (["--task", "st", "--target_language", "xx"], refused("xx")),
        "a first pass without a decoder": (
            ["--first_pass_beam_size", "3"], either(passes(), refused("first_pass")),
        ),
        "first_pass_beam_size -1": (
            ["--first_pass_beam_size", "-1"], refused("first_pass_beam_size"),
        ),
        "rescore_decoder_weight nan": (
            ["--rescore_decoder_weight", "nan"], refused("rescore_decoder_weight"),
        ),
        "pause_seconds -1": (["--pause_seconds", "-1"], refused("pause_seconds")),
        "stream and a file": (["--stream", "-"], refused("--stream")),
        "guard without guard.yaml": (["--guard"], refused("guard")),
    }  # fmt: skip
    for name, (words, check) in given.items():

        def build(place: Place, words=words) -> list[str]:
            return [*transcribe(str(place.model)), *words]

        yield Case("decoding options", name, build, check, seconds=60)
    for content, check in (
        (b"", refused()),
        (b"x" * 3, either(passes(), refused())),
        (b"\0" * 31999, either(passes(), refused())),
        (bytes(range(256)) * 200, either(passes(), refused())),
    ):
        for stream in ("-", "raw"):

            def live(place: Place, stream=stream) -> list[str]:
                line = ["speechllm.cli", "transcribe", "--model", str(place.model)]
                return [*line, "--stream", stream]

            expected = check if stream == "raw" else refused("standard input")
            if not content and stream == "raw":
                expected = either(refused(), passes())
            yield Case("live", f"--stream {stream}: {len(content)} bytes", live,
                       expected, stdin=lambda content=content: content,
                       seconds=60)  # fmt: skip
