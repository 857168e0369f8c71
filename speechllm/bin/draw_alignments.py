"""Draw the utterances of a decode dir that have most errors.

    python -m speechllm.bin.draw_alignments --model exp/speechllm_train/model \\
        --examples dump/examples/test --decode_dir exp/speechllm_train/decode/test

The pictures are in <decode_dir>/alignments: the spectrogram, with the words of
reference and hypothesis at the times that CTC gives them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from speechllm.decoding.option_flags import add_device_flag
from speechllm.utils.errors import UserError, run_main

NUMBER = 10  # of pictures


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.draw_alignments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="exported model folder")
    parser.add_argument("--examples", required=True, help="example dir")
    parser.add_argument("--decode_dir", required=True, help="its decode dir")
    add_device_flag(parser, "auto")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Draw the pictures and print their number."""
    args = get_parser().parse_args(argv)

    from speechllm.audio import load_audio
    from speechllm.data.kaldi_table import read_table
    from speechllm.evaluation.error_tables import rank_utterances
    from speechllm.evaluation.groups import read_groups
    from speechllm.inference.alignment_pictures import align_each, draw_alignment
    from speechllm.inference.speech_to_text import SpeechToText
    from speechllm.utils.folders import FolderKind, atomic_directory
    from speechllm.utils.names import safe_file_name

    folder = Path(args.decode_dir) / "alignments"
    groups = read_groups(args.examples, Path(args.decode_dir) / "text")
    worst = rank_utterances(groups)[:NUMBER]
    if not worst:
        print(f"{folder}: not written, since no utterance has an error")
        return
    model = SpeechToText.from_pretrained(args.model, args.device)
    if model.ctc_tokenizer is None:
        print(f"{folder}: not written, since it needs {model.missing_ctc()}")
        return
    wavs = read_table(Path(args.examples) / "wav.scp")
    drawn = 0
    with atomic_directory(folder, FolderKind("alignment pictures", ())) as written:
        for rank, (name, language, reference, hypothesis, errors) in enumerate(
            worst, 1
        ):
            try:
                wave = load_audio(wavs[name])
            except UserError as error:  # stage 12 has listed it
                print(f"warning: {error}")
                continue
            texts = {"hypothesis": hypothesis, "reference": reference}
            rows = align_each(model, wave, texts, language)
            title = f"{name}: {errors} errors"
            path = written / safe_file_name(f"{rank:02}-{name}", ".png")
            draw_alignment(path, title, wave, rows)
            drawn += 1
    print(f"{folder}: {drawn} pictures")


if __name__ == "__main__":
    run_main(main)
