"""Outputs that exist, hold inputs, cannot be written, or meet a full disk."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable, Iterator

from bad_case import SILENT, WRONG, Case, Check, Outcome, Place, either, passes, refused

NOBODY = 65534
#: Command -> arguments, with OUT for the output; whether this is a file; its input.
COMMANDS: dict[str, tuple[list[str], bool, str]] = {
    "filter": (["data_dir", "filter", "--input", "dump", "--output", "OUT"], False,
    "dump"),
    "combine": (
        ["data_dir", "combine", "--input", "dump", "--output", "OUT"], False, "dump",
    ),
    "subset": (
        ["data_dir", "subset", "--input", "dump", "--count", "2", "--output", "OUT"],
        False, "dump",
    ),
    "perturb_speed": (
        ["data_dir", "perturb_speed", "--input", "data", "--output", "OUT"], False,
        "data",
    ),
    "split": (
        ["data_dir", "split", "--input", "dump/text", "--parts", "2", "--output",
        "OUT"],
        False, "dump",
    ),
    "statistics": (
        ["data_dir", "statistics", "--input", "dump", "--output", "OUT"], True, "dump",
    ),
    "format_audio": (
        ["format_audio", "--input", "data", "--output", "OUT"], False, "data",
    ),
    "make_examples": (
        ["make_examples", "--input", "dump", "--tasks", "asr:en", "--output", "OUT"],
        False, "dump",
    ),
    "build_vocabulary": (
        ["build_vocabulary", "--text", "examples/text_ctc", "--output", "OUT"], False,
        "examples",
    ),
    "decode": (
        ["decode", "--model", "MODEL", "--examples", "examples", "--output_dir", "OUT"],
        False, "examples",
    ),
    "report": (["report", "--exp_root", "exp", "--output", "OUT"], True, "exp"),
    "pack": (["pack", "--model", "MODEL", "--output", "OUT"], True, "model"),
    "unpack": (
        ["pack", "--unpack", "model.zip", "--output", "OUT"], False, "model.zip",
    ),
    "unpack --force": (
        ["pack", "--unpack", "model.zip", "--force", "--output", "OUT"], False,
        "model.zip",
    ),
    "export_model": (
        ["export_model", "--exp_dir", "exp/new", "--output", "OUT"], False, "exp/new",
    ),
    "transcribe": (
        ["cli", "transcribe", "--model", "MODEL", "good.wav", "--output", "OUT"], True,
        "good.wav",
    ),
    "transcribe to json": (
        ["cli", "transcribe", "--model", "MODEL", "good.wav", "--format", "json",
         "--output", "OUT"], True, "good.wav",
    ),
    "transcribe to srt": (
        ["cli", "transcribe", "--model", "MODEL", "good.wav", "wav", "--format", "srt",
         "--output", "OUT"], False, "wav",
    ),
    "jsut": (
        ["prepare_data", "jsut", "--jsut_dir", "jsut", "--output", "OUT"], False,
        "jsut",
    ),
    "common_voice": (
        ["prepare_data", "common_voice", "--common_voice_dir", "cv", "--output", "OUT"],
        False, "cv",
    ),
}  # fmt: skip


def prepared(place: Place, command: str, output: str) -> list[str]:
    """Write what a command needs and return its arguments."""
    line, _, _ = COMMANDS[command]
    if "unpack" in command:
        from bad_packs import packed

        place.write("model.zip", packed(place.model))
    if command == "export_model":
        import torch
        from safetensors.torch import load_file

        folder = place.folder / "exp" / "new"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text((place.model / "config.yaml").read_text())
        for name in ("prompts.yaml", "tokens.txt"):
            (folder / name).write_text((place.model / name).read_text())
        config = (folder / "config.yaml").read_text()
        config += "prompts: exp/new/prompts.yaml\nctc_token_list: exp/new/tokens.txt\n"
        (folder / "config.yaml").write_text(config)
        torch.save(load_file(place.model / "model.safetensors"),
                   folder / "valid.acc.ave.pth")  # fmt: skip
    if command in ("jsut", "common_voice"):
        corpora(place)
    module = "speechllm.cli" if line[0] == "cli" else f"speechllm.bin.{line[0]}"
    words = {"OUT": output, "MODEL": str(place.model)}
    return [module, *(words.get(word, word) for word in line[1:])]


def corpora(place: Place) -> None:
    """Write a tiny JSUT and a tiny Common Voice."""
    data = (place.folder / "good.wav").read_bytes()
    place.write("jsut/basic5000/wav/BASIC5000_0001.wav", data)
    place.write(
        "jsut/basic5000/transcript_utf8.txt", "BASIC5000_0001:水をマレーシア。\n"
    )
    header = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\t"
    for split in ("train", "dev", "test"):
        row = f"c{split}\t{split}.mp3\t水です。\t2\t0\t\t\t\t\tja\t\n"
        place.write(f"cv/ja/{split}.tsv", header + "variant\tlocale\tsegment\n" + row)
        place.write(f"cv/ja/clips/{split}.mp3", data)


def kept(outcome: Outcome) -> str:
    """Accept any end; files of the user are compared by the table."""
    del outcome
    return ""


def json_added(outcome: Outcome) -> str:
    """Check that the transcript is in the folder that was named."""
    work = outcome.place.folder
    if (work / "good.json").is_file() or (work.parent / "good.json").is_file():
        return ""
    return f"{SILENT}: no good.json"


def situations() -> dict[str, tuple[Callable[[Place, str], str], Check, dict]]:
    """Return functions that prepare an output and return its path, and the check."""

    def users_folder(place: Place, command: str) -> str:
        place.write("out/thesis.txt", "years of work")
        place.write("out/photos/a.jpg", b"\xff\xd8")
        return "out"

    def users_file(place: Place, command: str) -> str:
        place.write("out", "years of work")
        os.chmod(place.folder / "out", 0o600)
        return "out"

    def parent(place: Place, command: str) -> str:
        return os.path.dirname(COMMANDS[command][2]) or "."

    def itself(place: Place, command: str) -> str:
        given = COMMANDS[command][2]
        return str(place.model) if given == "model" else given

    def grandparent(place: Place, command: str) -> str:
        return ".."

    def below_file(place: Place, command: str) -> str:
        place.write("notes", "of the user")
        return "notes/out"

    def linked_folder(place: Place, command: str) -> str:
        os.symlink(place.user, place.folder / "out")
        return "out"

    def linked_file(place: Place, command: str) -> str:
        os.symlink(place.user / "notes.txt", place.folder / "out")
        return "out"

    def dangling(place: Place, command: str) -> str:
        os.symlink("nowhere/deep", place.folder / "out")
        return "out"

    def loop(place: Place, command: str) -> str:
        os.symlink("out", place.folder / "out")
        return "out"

    def empty(place: Place, command: str) -> str:
        return ""

    def fifo(place: Place, command: str) -> str:
        os.mkfifo(place.folder / "out")
        return "out"

    def read_only(place: Place, command: str) -> str:
        place.write("closed/notes.txt", "of the user")
        os.chmod(place.folder / "closed", 0o555)
        return "closed/out"

    def long(place: Place, command: str) -> str:
        return "o" * 300

    def full(place: Place, command: str) -> str:
        return "new"

    return {
        "a folder of the user": (users_folder, kept, {}),
        "a file of the user": (users_file, kept, {}),
        "the parent of the input": (parent, refused(), {}),
        "the input": (itself, refused(), {}),
        "the parent of all": (grandparent, refused(), {}),
        "below a file": (below_file, refused("notes"), {}),
        "a link to the user's folder": (linked_folder, kept, {}),
        "a link to the user's file": (linked_file, kept, {}),
        "a link to nothing": (dangling, either(refused("out"), passes()), {}),
        "a link to itself": (loop, either(refused("out"), passes()), {}),
        "empty": (empty, either(refused(), passes()), {}),
        "a FIFO": (fifo, either(refused("out"), passes()), {"seconds": 15}),
        "in a read-only folder": (read_only, refused("closed"), {"user_id": NOBODY}),
        "a name of 300 letters": (long, refused(), {}),
        "a full disk, 0 bytes": (full, refused("new"), {"limit": 0}),
        "a full disk, 30 bytes": (full, either(refused("new"), passes()),
        {"limit": 30}),
        "a full disk, 5000 bytes": (
            full, either(refused("new"), passes()), {"limit": 5000},
        ),
    }  # fmt: skip


def cases() -> Iterator[Case]:
    """Yield every situation for every command, and repeated runs."""
    for command, (_, is_file, _) in COMMANDS.items():
        for name, (prepare, check, options) in situations().items():

            def build(place: Place, command=command, prepare=prepare) -> list[str]:
                output = prepare(place, command)
                return prepared(place, command, output)

            may_change: tuple[str, ...] = ()
            if is_file and name in ("a file of the user", "a FIFO"):
                may_change = ("out",)
                check = either(check, mode_kept) if name.startswith("a file") else check
            if name == "a FIFO" and command in ("transcribe", "transcribe to json"):
                continue  # it is written when another process reads it
            if "link to" in name and is_file:
                may_change = ("out", "user/notes.txt")  # the link's target is named
            if name == "the input" and command in (
                "split", "statistics", "report", "transcribe to srt", "jsut",
                "common_voice",
            ):  # fmt: skip
                check = kept  # they write next to what is there
            if name.startswith("the parent") and command in (
                "split", "statistics", "report", "transcribe to srt", "jsut",
                "common_voice", "build_vocabulary", "decode", "format_audio",
            ):  # fmt: skip
                check = kept
            if name.startswith("the parent") and command == "transcribe to json":
                check = passes(json_added)  # next to the recording
            yield Case(
                "outputs", f"{command}: {name}", build, check, may_change,
                **{"seconds": 25, **options},
            )  # fmt: skip
    yield from repeated()


def run_before(arguments: list[str], place: Place) -> None:
    """Run a command before the case."""

    def run() -> None:
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)

    place.run_before(run)


def mode_kept(outcome: Outcome) -> str:
    """Check that a replaced file keeps its mode 0600."""
    path = outcome.place.folder / "out"
    if path.is_file() and path.stat().st_mode & 0o777 != 0o600:
        return f"{SILENT}: the mode 0600 is lost"
    return ""


def repeated() -> Iterator[Case]:
    """Yield second runs into folders to which the user has added files."""
    for command in ("format_audio", "make_examples", "filter", "build_vocabulary",
                    "export_model", "decode"):  # fmt: skip

        def build(place: Place, command=command):
            arguments = prepared(place, command, "out")

            run_before(arguments, place)
            for name in (
                "README.md",
                "guard.yaml",
                "confidence.json",
                "mine/notes.txt",
            ):
                place.write(f"out/{name}", "of the user")
            return arguments

        def same(outcome: Outcome) -> str:
            path = outcome.place.folder / "out" / "README.md"
            return "" if path.exists() else f"{WRONG}: README.md is gone"

        outputs = (
            "out/wav.scp", "out/text*", "out/utt2*", "out/spk2utt", "out/dropped.tsv",
            "out/data*", "out/tokens.txt", "out/model.safetensors", "out/config.yaml",
            "out/prompts.yaml", "out/*.jsonl", "out/.*", "out", "out/wav*",
            "out/audio*",
            "out/*.flac", "out/flac*", "out/rtf*", "out/score*", "out/flags*",
        )  # fmt: skip
        yield Case("outputs", f"{command}: again, with files of the user", build, same,
                   outputs)  # fmt: skip
