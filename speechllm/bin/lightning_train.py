"""Train as ``speechllm_train`` does, with Lightning: DDP, FSDP or DeepSpeed.

    python -m speechllm.bin.lightning_train --strategy fsdp --ngpu 4 \
        --config conf/train.yaml --output_dir exp/a

It takes the options of ESPnet's trainer; needs ESPnet 202611 and the extra
``lightning`` (for DeepSpeed ``deepspeed``, too).
"""

from __future__ import annotations

from speechllm.utils.errors import run_main


def main(argv: list[str] | None = None) -> None:
    """Train the model."""
    from speechllm.training import load_task

    load_task()
    from speechllm.training import lightning_launch

    lightning_launch.main(argv)


if __name__ == "__main__":
    run_main(main)
