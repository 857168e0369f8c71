"""Batches of a long corpus, one split of its tables in memory at a time.

ESPnet's ``--multiple_iterator``: the tables are directories of splits, as
``espnet2.bin.split_scps`` writes them. A process holds the rows of one split, makes its
batches, and goes on to the next one. The order of the splits and of the batches in each
depends on the epoch only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from espnet2.iterators.multiple_iter_factory import MultipleIterFactory
from torch.utils.data import DataLoader

from speechllm.training.preprocessor import begin_epoch
from speechllm.training.signals import protect_workers


class SplitIterFactory(MultipleIterFactory):
    """ESPnet's factory of the splits' batches, of which an epoch can be left out."""

    def build_iter(self, epoch: int, shuffle: bool | None = None) -> SplitBatches:
        """Return the batches of an epoch, in the order of ESPnet's factory."""
        if shuffle is None:
            shuffle = self.shuffle
        build_funcs = list(self.build_funcs)
        if shuffle:
            np.random.RandomState(epoch + self.seed).shuffle(build_funcs)
        return SplitBatches(build_funcs, epoch, shuffle)


class SplitBatches:
    """The batches of one epoch, split by split.

    Args:
        build_funcs: return the factory of each split.
        epoch: number of the epoch.
        shuffle: shuffle the batches of each split.

    Attributes:
        share: of the epoch that has been drawn, 0 to 1, if the splits have the same
            number of batches.
    """

    def __init__(
        self,
        build_funcs: Sequence[Callable[[], AbsIterFactory]],
        epoch: int,
        shuffle: bool,
    ):
        self.build_funcs = build_funcs
        self.epoch = epoch
        self.shuffle = shuffle
        self.share = 0.0

    def __iter__(self) -> Iterator:
        return self.after(0)

    def after(self, count: int) -> Iterator:
        """Yield the batches after the first ``count``, whose audio is not read."""
        for number, build in enumerate(self.build_funcs):
            factory = build()
            begin_epoch(factory, self.epoch)
            loader = factory.build_iter(self.epoch, self.shuffle)
            protect_workers(loader)
            # of its own, or a split would take random numbers from the training
            loader.generator = torch.Generator()
            size = len(loader)
            left_out = min(count, size)
            count -= left_out
            if left_out:
                loader = without_first(loader, left_out)
            for index, batch in enumerate(loader, left_out + 1):
                self.share = (number + index / size) / len(self.build_funcs)
                yield batch
            del loader  # before the next split is read


def without_first(loader: DataLoader, count: int) -> DataLoader:
    """Return a loader without the first ``count`` batches."""
    return DataLoader(
        loader.dataset,
        batch_sampler=list(loader.batch_sampler)[count:],
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
    )
