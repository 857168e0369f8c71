"""Train a speech encoder, a bridge and an LLM as one model, as an ESPnet task.

Takes ESPnet's options; ``--config conf/train.yaml`` holds most of them.
"""

from __future__ import annotations

from speechllm.utils.errors import run_main


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and train."""
    from speechllm.training.task import SpeechLLMTask

    SpeechLLMTask.main(cmd=argv)


if __name__ == "__main__":
    run_main(main)
