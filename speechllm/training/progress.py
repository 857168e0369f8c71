"""Progress lines of a training on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from espnet2.iterators.abs_iter_factory import AbsIterFactory


class ProgressIterFactory(AbsIterFactory):
    """Iterator factory that prints ``progress:`` lines while batches are drawn.

    Args:
        factory: ESPnet's factory of the batches of an epoch.
        max_epoch: total number of epochs.
        seconds: minimum time between two lines.
    """

    def __init__(self, factory: AbsIterFactory, max_epoch: int, seconds: float = 5.0):
        self.factory = factory
        self.max_epoch = max_epoch
        self.seconds = seconds
        self.started: tuple[float, int] | None = None  # time and first epoch

    def build_iter(self, epoch: int, shuffle: bool | None = None) -> Iterator:
        """Return the batches of an epoch."""
        batches = self.factory.build_iter(epoch, shuffle)
        try:
            size = len(batches)
        except TypeError:
            size = None
        if self.started is None:
            self.started = (time.monotonic(), epoch)
        return ProgressIterator(batches, size, epoch, self)


class ProgressIterator:
    """The batches of one epoch; prints progress lines in between."""

    def __init__(self, batches, size: int | None, epoch: int, owner):
        self.batches, self.size, self.epoch, self.owner = batches, size, epoch, owner

    def __len__(self) -> int:
        if self.size is None:
            raise TypeError("the number of batches is not known")
        return self.size

    def __iter__(self) -> Iterator:
        last = 0.0
        for index, batch in enumerate(self.batches, 1):
            yield batch
            now = time.monotonic()
            if now - last >= self.owner.seconds or index == self.size:
                last = now
                print(self.line(index, now), file=sys.stderr, flush=True)

    def line(self, index: int, now: float) -> str:
        """Return a line: ``progress: epoch 2/12, batch 30/86, about 7 min left``.

        Without the number of batches, it is ``batch 30 (35 % of the epoch)``, if
        the batches tell their share.
        """
        begin, first = self.owner.started
        text = f"progress: epoch {self.epoch}/{self.owner.max_epoch}, batch {index}"
        if self.size is not None:
            share, text = index / self.size, f"{text}/{self.size}"
        else:
            share = getattr(self.batches, "share", 0.0)
            if not share:
                return text
            text += f" ({100 * share:.0f} % of the epoch)"
        done = self.epoch - first + share
        left = self.owner.max_epoch - first + 1 - done
        minutes = (now - begin) / done * left / 60
        return f"{text}, about {minutes:.0f} min left"
