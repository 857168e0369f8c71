"""Transcribe and translate recordings with a trained model; the command `speechllm`.

    speechllm transcribe --model exp/speechllm_train a.wav b.flac recordings/
    speechllm demo --model exp/speechllm_train
    speechllm serve --model exp/speechllm_train --port 8000
    speechllm estimate --config conf/train.yaml --gpu 80

Each command has its own --help, with more examples.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from textwrap import fill, indent

import speechllm
from speechllm.decoding.option_flags import (
    add_device_flag,
    add_search_flags,
    given_flags,
)
from speechllm.inference.output_formats import FORMATS
from speechllm.inference.recordings import find_recordings
from speechllm.utils.errors import UserError, run_main
from speechllm.utils.schema import check_options, integer, number, optional

JOB_FLAGS = ("batch_size", "dtype", "engine")


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="speechllm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"speechllm {speechllm.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    add_transcribe(commands)
    add_serve(commands)
    add_demo(commands)
    add_to_nue_asr(commands)
    add_estimate(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the subcommand and return the exit status."""
    args = get_parser().parse_args(argv)
    return args.run(args)


def add_command(
    commands,
    name: str,
    help: str,
    description: str,
    examples: str,
    usage: str | None = None,
) -> argparse.ArgumentParser:
    """Add a command, whose ``--help`` shows examples below the description."""
    return commands.add_parser(
        name,
        usage=usage,
        help=help,
        description=f"{fill(description, 79)}\n\n{indent(examples, '    ')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_transcribe(commands) -> None:
    """Add the command ``transcribe``."""
    parser = add_command(
        commands,
        "transcribe",
        "transcribe or translate recordings",
        "Transcribe or translate recordings of any length. A recording that cannot be "
        "read is reported and skipped; a truncated one is transcribed as far as it "
        "goes. In both cases the exit status is 1.",
        """\
speechllm transcribe --model exp/speechllm_train a.wav b.flac recordings/
speechllm transcribe --model M --task st --language en --target_language fr a.mp3
speechllm transcribe --model M --format srt --output subtitles film.mkv talk.mp3
speechllm transcribe --model M --language auto --format all --output texts calls/
ffmpeg -i film.mkv -f wav - | speechllm transcribe --model M --format json -
speechllm transcribe --model M --stream mic""",
        "speechllm transcribe --model MODEL [options] INPUT ...",
    )
    add = parser.add_argument
    add(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="audio file, named pipe, folder of audio files, Kaldi wav.scp, or - for "
        "one recording on standard input",
    )
    add_model_flags(parser)
    add("--task", default="asr", help="asr, st, … as in the model's prompts [asr]")
    add(
        "--language",
        help="code of the spoken language, or auto to detect it with Whisper's "
        "decoder, for models with a Whisper encoder [the model's first]",
    )
    add("--target_language", help="code of the language to translate into [none]")
    add(
        "--stream",
        choices=("-", "raw", "mic"),
        help="transcribe live and print each segment when its pause comes; from -: "
        "standard input, any container; raw: standard input, 16-bit samples at 16 kHz, "
        "one channel; mic: the microphone",
    )
    add(
        "--track",
        type=int,
        help="audio track of files with several, from 1 [the first with sound]",
    )
    add(
        "--output",
        metavar="PATH",
        help="file to write, or folder for formats with one file per recording, which "
        "gets the subfolders of the input; the same command skips what is done "
        "[standard output]",
    )
    add(
        "--format",
        default="table",
        choices=FORMATS,
        help="table, text, json: a line per recording; txt, srt, vtt, tsv, ctm, "
        "TextGrid: a file per recording, so is json if --output is a folder that "
        "exists or ends with /; all: every kind of file [table]",
    )
    add(
        "--debug",
        action="store_true",
        help="stop at an unexpected error of a recording and show its traceback",
    )
    parser.set_defaults(run=transcribe)


def add_model_and_device(parser: argparse.ArgumentParser) -> None:
    """Add the options of a model and its device."""
    add = parser.add_argument
    add("--model", required=True, help="folder of a trained model, or a hub id")
    add_device_flag(parser, "auto")


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of a model and of its decoding."""
    add_model_and_device(parser)
    add = parser.add_argument
    add("--batch_size", type=int, help="utterances decoded together [8]")
    add(
        "--dtype",
        help="float32, bfloat16, float16, 4bit (weights of the LLM) or auto [float32]",
    )
    add(
        "--engine",
        help="auto, eager, or vllm: the LLM runs in vLLM, with greedy search [auto]",
    )
    add(
        "--strict",
        action="store_true",
        help="refuse pretrained weights that differ from those in training",
    )
    add(
        "--max_seconds",
        type=float,
        default=15.0,
        help="maximum length of a segment of a longer recording, in seconds [15]",
    )
    add(
        "--pause_seconds",
        type=float,
        help="minimum pause between two segments, in seconds; larger for a model "
        "trained on long utterances [0.1; 0.5 with --stream]",
    )
    add_search_flags(parser)


def add_serve(commands) -> None:
    """Add the command ``serve``."""
    parser = add_command(
        commands,
        "serve",
        "serve a model over HTTP, with the OpenAI audio API",
        "Serve a model over HTTP, with the OpenAI audio API: POST "
        "/v1/audio/transcriptions and /v1/audio/translations, GET /v1/models, /health "
        "and /metrics. Segments of all requests are decoded together. If the "
        "environment variable SPEECHLLM_API_KEY is set, requests to /v1 need this key. "
        "SIGTERM and Ctrl-C end the server after the requests in work. It needs pip "
        "install 'speechllm[serve]'.",
        """\
speechllm serve --model exp/speechllm_train --port 8000
curl http://127.0.0.1:8000/v1/audio/transcriptions -F file=@a.wav -F language=en""",
        "speechllm serve --model MODEL [options]",
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on [127.0.0.1]")
    add("--port", type=int, default=8000, help="port, 0: any free one [8000]")
    add(
        "--language",
        help="code of the language of requests without one, or auto to detect it with "
        "Whisper's decoder [the model's first]",
    )
    add_model_flags(parser)
    limits = parser.add_argument_group("limits of requests")
    for name, default, help in (
        ("max_megabytes", 100, "largest upload; others get 413"),
        ("max_minutes", 120, "longest recording; others get 400"),
        ("max_requests", 64, "uploads at once, in work or waiting; others get 429"),
    ):
        kind = float if name == "max_minutes" else int
        text = f"{help} [{default}]"
        limits.add_argument(f"--{name}", type=kind, default=default, help=text)
    parser.set_defaults(run=serve)


def add_demo(commands) -> None:
    """Add the command ``demo``."""
    parser = add_command(
        commands,
        "demo",
        "show a web page that transcribes recordings",
        "Serve a web page on this machine, for a recording of the microphone or a "
        "file: its text, coloured by confidence, and subtitles. It needs pip install "
        "'speechllm[demo]'.",
        "speechllm demo --model exp/speechllm_train",
    )
    add_model_and_device(parser)
    parser.set_defaults(run=demo)


def add_to_nue_asr(commands) -> None:
    """Add the command ``to_nue_asr``."""
    parser = add_command(
        commands,
        "to_nue_asr",
        "convert a model to Nue-ASR's released format",
        "Convert a model of HuBERT, convolution bridge and GPT-NeoX to the format of "
        "yky-h/nue-asr, with a model card and merged adapters.",
        "speechllm to_nue_asr --model exp/speechllm_train_nue_asr --output nue_asr",
    )
    parser.add_argument("--model", required=True, help="folder of a trained model")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument(
        "--license", default="", help="license of the weights, for the card [none]"
    )
    parser.set_defaults(run=to_nue_asr)


def add_estimate(commands) -> None:
    """Add the command ``estimate``."""
    parser = add_command(
        commands,
        "estimate",
        "estimate memory and time of a training",
        "Estimate parameters, memory and time of a training from its config, without "
        "loading weights. The exit status is 1 if it does not fit.",
        """\
speechllm estimate --config conf/train.yaml --gpu 80
speechllm estimate --config conf/train.yaml --llm google/gemma-2-9b --hours 400""",
    )
    parser.add_argument("--config", required=True, help="training config, YAML")
    parser.add_argument(
        "--gpu", type=float, help="GiB of memory of the GPU, to check the fit [none]"
    )
    parser.add_argument(
        "--tflops",
        type=float,
        default=125.0,
        help="achieved 10^12 operations per second [125, 40 %% of an A100's bfloat16]",
    )
    parser.add_argument(
        "--hours",
        type=float,
        help="hours of speech in the training set, for the time of the training [none]",
    )
    for part in ("encoder", "llm"):
        help = f"hub id or folder, in place of the {part} of the config"
        parser.add_argument(f"--{part}", metavar="NAME", help=help)
    parser.add_argument(
        "--train_args",
        default="",
        metavar="ARGS",
        help="more arguments of the training program; needs ESPnet [none]",
    )
    parser.set_defaults(run=estimate)


def transcribe(args: argparse.Namespace) -> int:
    """Transcribe recordings; return 1 if any failed, else 0."""
    from speechllm.decoding.options import check_decoding_options
    from speechllm.inference.transcribe_recordings import transcribe_recordings

    options = given_flags(args)
    check_decoding_options(given_flags(args, JOB_FLAGS), "command line")
    check_options(
        {"--track": args.track}, {"--track": optional(integer(1))}, "command line"
    )
    if args.stream is not None:
        return transcribe_stream(args, options)
    recordings = find_recordings(args.inputs, track=args.track)
    try:
        failed = transcribe_recordings(
            args.model,
            recordings,
            args.output,
            args.format,
            args.task,
            args.language,
            args.target_language,
            args.device,
            args.dtype,
            args.batch_size,
            args.debug,
            args.config,
            args.strict,
            args.engine,
            **cutting_flags(args),
            **options,
        )
    except KeyboardInterrupt:
        if args.output is not None:
            raise  # the same command resumes
        print("interrupted; with --output a re-run resumes", file=sys.stderr)
        return 130
    if failed:
        print(f"{failed} of {len(recordings)} recordings failed", file=sys.stderr)
    return 1 if failed else 0


def cutting_flags(args: argparse.Namespace) -> dict[str, float]:
    """Return the options of the segmentation that the command line has."""
    given = {"max_seconds": args.max_seconds, "pause_seconds": args.pause_seconds}
    return {name: value for name, value in given.items() if value is not None}


def transcribe_stream(args: argparse.Namespace, options: dict) -> int:
    """Transcribe standard input or the microphone until it ends."""
    from speechllm.inference.live import transcribe_stream

    if args.inputs or args.output is not None or args.track is not None:
        raise UserError("--stream takes no INPUT, --output or --track")
    if args.format not in ("table", "text", "json"):
        raise UserError(f"--format {args.format}: --stream prints text or json")
    try:
        transcribe_stream(
            args.stream,
            args.model,
            args.format == "json",
            args.task,
            args.language,
            args.target_language,
            args.device,
            args.dtype,
            args.config,
            args.strict,
            args.engine,
            **cutting_flags(args),
            **options,
        )
    except KeyboardInterrupt:  # the usual end of a microphone
        return 130
    return 0


def serve(args: argparse.Namespace) -> int:
    """Serve a model until a signal ends it."""
    from speechllm.decoding.options import check_decoding_options

    check_decoding_options(given_flags(args, JOB_FLAGS), "command line")
    limits = {
        "--port": integer(0, 65535),
        "--max_megabytes": integer(1, 10**6),
        "--max_minutes": number(above=0, most=1e6),
        "--max_requests": integer(1, 10**4),
    }
    given = {name: getattr(args, name[2:]) for name in limits}
    check_options(given, limits, "command line")
    from speechllm.serving.server import serve

    serve(
        args.model,
        args.host,
        args.port,
        args.language,
        args.device,
        args.dtype,
        args.batch_size,
        args.config,
        args.strict,
        args.engine,
        args.max_megabytes,
        args.max_minutes,
        args.max_requests,
        cutting_flags(args),
        given_flags(args),
    )
    return 0


def demo(args: argparse.Namespace) -> int:
    """Serve the web page until an interrupt."""
    from speechllm.demo.page import run_demo

    run_demo(args.model, args.device)
    return 0


def to_nue_asr(args: argparse.Namespace) -> int:
    """Convert a model to Nue-ASR's format."""
    from speechllm.export.nue_asr_format import check_output, save_nue_asr
    from speechllm.inference.speech_to_text import SpeechToText

    check_output(args.output)  # before the model is loaded
    save_nue_asr(
        SpeechToText.from_pretrained(args.model, dtype="float32"),
        args.output,
        args.license,
    )
    print(f"{args.output}: written in Nue-ASR's format")
    return 0


def estimate(args: argparse.Namespace) -> int:
    """Print the estimate of a training; return 1 if it does not fit, else 0."""
    from speechllm.training import load_task
    from speechllm.training.options import read_training_config
    from speechllm.training.resource_estimate import replace_shapes, report

    given = {"--gpu": args.gpu, "--tflops": args.tflops, "--hours": args.hours}
    rules = dict.fromkeys(("--gpu", "--hours"), optional(number(above=0)))
    check_options(given, {**rules, "--tflops": number(above=0)}, "command line")
    if args.train_args:
        try:
            words = shlex.split(args.train_args)
        except ValueError as error:
            raise UserError(f"--train_args: {error} in: {args.train_args}") from None
        config = vars(load_task().parse(["--config", args.config, *words]))
    else:
        config = read_training_config(args.config)
    config = replace_shapes(config, args.encoder, args.llm)
    text, fits = report(config, args.gpu, args.tflops, args.hours)
    print(text)
    return 0 if fits else 1


def console_main() -> None:
    """Run the console script ``speechllm``."""
    run_main(main)


if __name__ == "__main__":
    console_main()
