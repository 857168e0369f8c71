"""Train a speech encoder, a bridge and an LLM as one model (an ESPnet task).

    python -m speechllm.bin.speechllm_train --config conf/train.yaml --output_dir exp/a

It takes ESPnet's options; conf/train.yaml holds most of them.
"""

from __future__ import annotations

import argparse

from speechllm.utils.errors import run_main


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    from speechllm.training import load_task

    return load_task().get_parser()


def main(argv: list[str] | None = None) -> None:
    """Train the model."""
    from speechllm.training import load_task

    load_task().main(cmd=argv)


if __name__ == "__main__":
    run_main(main)
