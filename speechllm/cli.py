"""The command ``speechllm``: speech to text from the shell.

speechllm transcribe --model exp/speechllm_train/model a.wav b.flac recordings/
speechllm transcribe --model M --task st --language en --target_language fr a.mp3
speechllm transcribe --model M --format srt --output subtitles film.mkv talk.mp3
ffmpeg -i film.mkv -f wav - | speechllm transcribe --model M --format json -
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

from speechllm.inference.recordings import (
    FORMATS,
    SUBTITLES,
    Recording,
    find_recordings,
    format_transcription,
    subtitle_paths,
)
from speechllm.utils.errors import UserError, run_main
from speechllm.utils.io import atomic_open

BAR = "{percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]"
BAR_WITHOUT_END = "{n:.0f} s of audio [{elapsed}]"
SEARCH_OPTIONS = ("beam_size", "nbest", "ctc_weight", "penalty", "guard")


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run the command; return the exit status."""
    parser = argparse.ArgumentParser(prog="speechllm", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    add_transcribe(commands)
    add_to_nue_asr(commands)
    add_estimate(commands)
    args = parser.parse_args(argv)
    return args.run(args)


def add_transcribe(commands) -> None:
    """Add the command ``transcribe``."""
    parser = commands.add_parser(
        "transcribe",
        help="transcribe or translate recordings",
        description="Transcribe or translate recordings of any length. A recording "
        "that cannot be read is reported and left out; of one that is cut off there "
        "is the text of what is there. The exit status is then 1.",
    )
    add = parser.add_argument
    add(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="audio file, folder of audio files, Kaldi wav.scp, or - for one "
        "recording on standard input",
    )
    add("--model", required=True, help="folder of a trained model, or a hub id")
    add("--task", default="asr", help="asr, st, … as the model's prompts say [asr]")
    add("--language", help="code of what is spoken [the model's first]")
    add("--target_language", help="code of what to translate into")
    add("--batch_size", type=int, default=8, help="utterances at once [8]")
    add("--beam_size", type=int, help="hypotheses kept; 1 is greedy [1]")
    add("--nbest", type=int, help="hypotheses given, in json [1]")
    add("--ctc_weight", type=float, help="share of the CTC branch's score [0]")
    add("--penalty", type=float, help="added to the score for each token [0]")
    add(
        "--guard",
        action=argparse.BooleanOptionalAction,
        help="check answers against the audio [if the model has a guard.yaml]",
    )
    add("--device", default="cpu", help="cpu, cuda, … [cpu]")
    add("--dtype", default="float32", help="float32, bfloat16, float16 or auto")
    add(
        "--max_seconds",
        type=float,
        default=15.0,
        help="longer recordings are decoded in segments of at most this [15]",
    )
    add(
        "--pause_seconds",
        type=float,
        default=0.1,
        help="a silence so long ends a segment; more for a model that was trained on "
        "long utterances [0.1]",
    )
    add(
        "--words",
        action="store_true",
        help="times of words: in json, and for the cues of srt and vtt",
    )
    add(
        "--output",
        metavar="PATH",
        help="write there; srt or vtt of several recordings: a folder "
        "[standard output]",
    )
    add("--format", default="table", choices=FORMATS, help="[table]")
    parser.set_defaults(run=transcribe)


def add_to_nue_asr(commands) -> None:
    """Add the command ``to_nue_asr``."""
    parser = commands.add_parser(
        "to_nue_asr",
        help="write a model in Nue-ASR's released format",
        description="Write a model of HuBERT, convolution bridge and GPT-NeoX in the "
        "format of rinna/nue-asr, with a model card; adapters are merged.",
    )
    parser.add_argument("--model", required=True, help="folder of a trained model")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--license", default="", help="of the weights, for the card")
    parser.set_defaults(run=to_nue_asr)


def add_estimate(commands) -> None:
    """Add the command ``estimate``."""
    parser = commands.add_parser(
        "estimate",
        help="memory and time that a training needs",
        description="Count parameters, memory and time of a training from its config, "
        "without loading a weight. The exit status is 1 if it does not fit.",
    )
    parser.add_argument("--config", required=True, help="training config, YAML")
    parser.add_argument(
        "--gpu", type=float, help="memory of a GPU in GiB: does it fit?"
    )
    parser.add_argument(
        "--tflops",
        type=float,
        default=125.0,
        help="10^12 operations a second that are reached [125, 40 %% of an A100's "
        "bfloat16]",
    )
    parser.set_defaults(run=estimate)


def estimate(args: argparse.Namespace) -> int:
    """Print what a training needs; 1 if it does not fit, else 0."""
    from speechllm.training.resource_estimate import report
    from speechllm.utils.io import read_yaml

    if args.tflops <= 0 or (args.gpu is not None and args.gpu <= 0):
        raise UserError("--gpu and --tflops are above 0")
    text, fitting = report(read_yaml(args.config), args.gpu, args.tflops)
    print(text)
    return 0 if fitting else 1


def to_nue_asr(args: argparse.Namespace) -> int:
    """Write a model in Nue-ASR's format."""
    from speechllm.export.nue_asr_format import check_output, save_nue_asr
    from speechllm.inference.speech_to_text import SpeechToText

    check_output(args.output)  # before the model is loaded
    save_nue_asr(SpeechToText.from_pretrained(args.model), args.output, args.license)
    print(f"{args.output}: written in Nue-ASR's format")
    return 0


def transcribe(args: argparse.Namespace) -> int:
    """Write the text of each recording; 1 if any failed, else 0."""
    if args.batch_size < 1:
        raise UserError(f"--batch_size {args.batch_size}: at least 1")
    recordings = find_recordings(args.inputs)
    generation = {
        name: getattr(args, name)
        for name in SEARCH_OPTIONS
        if getattr(args, name) is not None
    }
    with output_writer(recordings, args.output, args.format) as write:
        return write_texts(args, recordings, generation, write)


def write_texts(
    args: argparse.Namespace,
    recordings: list[Recording],
    generation: dict,
    write: Callable[[str | None], None],
) -> int:
    """Load the model and write what it makes of the recordings; the exit status."""
    from tqdm import tqdm
    from transformers.utils.logging import disable_progress_bar

    from speechllm.inference.long_form import transcribe_long
    from speechllm.inference.speech_to_text import SpeechToText

    disable_progress_bar()  # of loading weights: one bar is enough
    model = SpeechToText.from_pretrained(args.model, args.device, args.dtype)
    *_, target = model.request(args.task, args.language, args.target_language)
    if args.words:
        generation["word_times"] = True
    failed = 0
    expected = [recording.expected_seconds() for recording in recordings]
    with tqdm(
        total=None if None in expected else sum(expected),
        file=sys.stderr,
        bar_format=BAR_WITHOUT_END if None in expected else BAR,
    ) as bar:
        transcriptions = transcribe_long(
            model,
            (recording.stream() for recording in recordings),
            task=args.task,
            language=args.language,
            target_language=args.target_language,
            max_seconds=args.max_seconds,
            pause_seconds=args.pause_seconds,
            batch_size=args.batch_size,
            progress=bar.update,
            **generation,
        )
        for recording, transcription in zip(recordings, transcriptions, strict=True):
            write(
                format_transcription(recording.name, transcription, args.format, target)
            )
            if transcription.error is not None:
                failed += 1
                bar.write(f"error: {transcription.error}", file=sys.stderr)
    if failed:
        print(f"{failed} of {len(recordings)} recordings failed", file=sys.stderr)
    return 1 if failed else 0


@contextmanager
def output_writer(
    recordings: list[Recording], output: str | None, form: str
) -> Iterator[Callable[[str | None], None]]:
    """A function that takes what is to be written for each recording, in order.

    Raises:
        UserError: there is no place for it; said before any work is done.
    """
    paths = subtitle_paths(recordings, output, form) if form in SUBTITLES else None
    if paths is None:
        with output_stream(output) as stream:

            def write(text: str | None) -> None:
                stream.write(text or "")
                stream.flush()

            yield write
        return
    try:
        paths[0].parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
        raise UserError(f"--output {output}: cannot be written: {reason}") from None
    following = iter(paths)

    def write_file(text: str | None) -> None:
        path = next(following)
        if text is not None:
            with atomic_open(path) as stream:
                stream.write(text)

    yield write_file


@contextmanager
def output_stream(path: str | None) -> Iterator[IO[str]]:
    """Standard output, or a file that is there only when it is complete.

    Raises:
        UserError: the file cannot be written; said before any work is done.
    """
    if path is None:
        sys.stdout.reconfigure(encoding="utf-8")
        yield sys.stdout
        return
    if os.path.isdir(path):
        raise UserError(f"--output {path}: this is a folder; name a file")
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(atomic_open(path))
        except OSError as error:
            raise UserError(
                f"--output {path}: cannot be written: {error.strerror}"
            ) from None
        yield stream


def console_main() -> None:
    """Entry point of the console script ``speechllm``."""
    run_main(main)


if __name__ == "__main__":
    console_main()
