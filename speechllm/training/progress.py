"""Batches of an epoch: progress lines on stderr, and a start in the middle."""

from __future__ import annotations

import functools
import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from espnet2.iterators.abs_iter_factory import AbsIterFactory
from torch.utils.data import DataLoader

from speechllm.training.preprocessor import begin_epoch
from speechllm.training.signals import protect_workers
from speechllm.training.splits import without_first


class ProgressIterFactory(AbsIterFactory):
    """Iterator factory that prints ``progress:`` lines while batches are drawn.

    Args:
        factory: ESPnet's factory of the batches of an epoch.
        max_epoch: total number of epochs.
        seconds: minimum time between two lines.
        show: print lines; false in validation, and in all processes but the first.
    """

    def __init__(
        self,
        factory: AbsIterFactory,
        max_epoch: int,
        seconds: float = 5.0,
        show: bool = True,
    ):
        self.factory = factory
        self.max_epoch = max_epoch
        self.seconds = seconds
        self.show = show
        self.started: tuple[float, float] | None = None  # time, and epochs before it

    def build_iter(self, epoch: int, shuffle: bool | None = None) -> ProgressIterator:
        """Return the batches of an epoch."""
        begin_epoch(self.factory, epoch)
        batches = self.factory.build_iter(epoch, shuffle)
        if isinstance(batches, DataLoader):
            protect_workers(batches)
        try:
            size = len(batches)
        except TypeError:
            size = None
        return ProgressIterator(batches, size, epoch, self)


class ProgressIterator:
    """The batches of one epoch; prints progress lines in between.

    Attributes:
        start: number of batches to leave out, since an earlier run has processed them.
        on_step: called with the number of processed batches, first with ``start``.
        done: number of processed batches, which a training with Lightning sets.
    """

    def __init__(self, batches: Iterable, size: int | None, epoch: int, owner):
        self.batches, self.size, self.epoch, self.owner = batches, size, epoch, owner
        self.start = self.done = 0
        self.on_step: Callable[[int], None] = lambda done: None

    def __len__(self) -> int:
        if self.size is None:
            raise TypeError("the number of batches is not known")
        return self.size

    def state_dict(self) -> dict[str, int]:
        """Return the position, for a checkpoint of Lightning."""
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin where a checkpoint was saved."""
        self.start = self.done = state["done"]

    def __iter__(self) -> Iterator:
        if self.owner.started is None:
            begun = self.start / self.size if self.size else 0.0
            self.owner.started = (time.monotonic(), self.epoch - 1 + begun)
        batches = iter(self.remaining())
        self.on_step(self.start)
        last = 0.0
        for index, batch in enumerate(batches, self.start + 1):
            yield batch
            self.on_step(index)
            now = time.monotonic()
            due = now - last >= self.owner.seconds or index == self.size
            if self.owner.show and due:
                last = now
                print(self.line(index, now), file=sys.stderr, flush=True)

    def remaining(self) -> Iterable:
        """Return the batches from ``start`` on; a data loader reads only these."""
        loader = self.batches
        if self.start == 0:
            return loader
        if hasattr(loader, "after"):  # splits
            return loader.after(self.start)
        if not isinstance(loader, DataLoader) or self.ids() is None:
            return islice(loader, self.start, None)
        return without_first(loader, self.start)

    def ids(self) -> Sequence | None:
        """Return the utterance ids of each batch, if they are known in advance."""
        sampler = getattr(self.batches, "batch_sampler", None)
        return sampler if isinstance(sampler, Sequence) else None

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the utterance ids and their batches, or else of their number."""
        digest = hashlib.sha256()
        for batch in self.ids() or [[str(self.size)]]:
            digest.update(" ".join(batch).encode() + b"\n")
        return digest.hexdigest()

    def line(self, index: int, now: float) -> str:
        """Return a line: ``progress: epoch 2/12, batch 30/86, about 7 min left``.

        Without the number of batches, it is ``batch 30 (35 % of the epoch)``, if
        the batches tell their share.
        """
        begin, before = self.owner.started
        text = f"progress: epoch {self.epoch}/{self.owner.max_epoch}, batch {index}"
        if self.size is not None:
            share, text = index / self.size, f"{text}/{self.size}"
        else:
            share = getattr(self.batches, "share", 0.0)
            if not share:
                return text
            text += f" ({100 * share:.0f} % of the epoch)"
        done = self.epoch - 1 + share
        left = self.owner.max_epoch - done
        minutes = (now - begin) / (done - before) * left / 60
        return f"{text}, about {minutes:.0f} min left"
