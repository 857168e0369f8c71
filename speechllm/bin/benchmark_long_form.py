"""How long recordings fare beside the prompts that they are joined from.

    python -m speechllm.bin.benchmark_long_form --model exp/speechllm_train/model \\
        --examples dump/examples/test --language en --minutes 10 --music moh \\
        --output_dir exp/long_form --config conf/decode.yaml

The prompts of an example dir are joined, in shuffled rounds, to recordings of some
minutes: ``pauses`` puts 0.3 to 2 s of near silence between them, ``music`` 2 to 8 s of
hold music, ``none`` nothing at all, and ``trimmed`` takes away the silence at their
edges too, so that words of two prompts touch. Each recording is transcribed, and its
WER stands beside that of the same prompts taken one by one.

For word times the truth is where a prompt lies in the recording: from the first to the
last frame of 10 ms that is at most 35 dB below the prompt's loudest one. A word that was
recognised is *inside* when it neither begins more than 100 ms before its prompt nor
ends more than 100 ms behind it; the first and last words of prompts have to begin and
end within 100 ms of the prompt's limits.
"""

from __future__ import annotations

import argparse

from speechllm.benchmarks.long_form import JOINS, benchmark
from speechllm.utils.errors import UserError, run_main
from speechllm.utils.io import read_yaml


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, and print a table as it grows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="folder of a trained model")
    add("--examples", required=True, help="example dir")
    add("--language", default="en", help="of the prompts [en]")
    add("--minutes", type=float, default=10, help="of each recording [10]")
    add("--joins", nargs="+", default=JOINS, choices=JOINS, help="[all]")
    add("--music", help="folder of hold music, for the join 'music'")
    add("--output_dir", required=True, help="for the recordings and their texts")
    add("--config", help="YAML with batch_size and options of the search")
    add("--max_seconds", type=float, default=15.0, help="of a segment [15]")
    add("--pause_seconds", type=float, default=0.1, help="[0.1]")
    add("--seed", type=int, default=0, help="[0]")
    args = parser.parse_args(argv)
    if "music" in args.joins and not args.music:
        raise UserError("--joins music needs a folder of hold music: --music")
    options = read_yaml(args.config) if args.config else {}
    benchmark(args, options)


if __name__ == "__main__":
    run_main(main)
