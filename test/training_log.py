"""TensorBoard files of a training, as ESPnet's trainer writes them."""

from __future__ import annotations

from pathlib import Path


def log_training(
    folder: Path, train: list[list[dict[str, float]]], valid: list[dict[str, float]]
) -> None:
    """Write ``folder/train`` and ``folder/valid``.

    Args:
        folder: ``tensorboard`` of an experiment.
        train: statistics of each batch of each epoch.
        valid: statistics after each epoch.
    """
    from espnet2.train.reporter import Reporter
    from torch.utils.tensorboard import SummaryWriter

    reporter = Reporter()
    logged = {"train": train, "valid": [[values] for values in valid]}
    writers = {split: SummaryWriter(str(folder / split)) for split in logged}
    for epoch in range(1, len(valid) + 1):
        reporter.set_epoch(epoch)
        for split, epochs in logged.items():
            with reporter.observe(split) as observed:
                for values in epochs[epoch - 1]:
                    observed.register(values)
                    observed.next()
            reporter.tensorboard_add_scalar(writers[split], key1=split)
    for writer in writers.values():
        writer.close()
