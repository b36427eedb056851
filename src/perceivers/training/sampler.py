"""Sampler: which records a step learns from, a function of (seed, step), so that a resumed run continues exactly.

No worker and no loader holds a state; what is random in a record depends on (seed, epoch, record).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from traceback import clear_frames
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from perceivers.schema import Record, Schema
from perceivers.schema.memory import check_memory, num_bytes
from perceivers.training.signals import ignore_stop_signals

WINDOW = 8
"""Groups of records that are mixed at a time."""

Draw = tuple[int, int]
"""(epoch, number of the record)."""


@dataclass(frozen=True)
class BatchOrder(Sampler[list[Draw]]):
    """Batches of draws for steps `first` to `last`, of which process `rank` of `world` takes its share."""

    seed: int
    num_records: int
    batch_size: int
    first: int
    last: int
    rank: int = 0
    world: int = 1
    shuffle: bool = True
    groups: tuple[int, ...] = ()
    """Sizes of groups of neighbouring records that are cheap to read together; none: every record stands alone."""

    def __iter__(self) -> Iterator[list[Draw]]:
        """Each epoch is a permutation of its own, or the records as they come; batches run across epochs' borders.

        Groups are permuted, then the records of each WINDOW groups in a row.
        """
        order = lru_cache(maxsize=2)(self._order)
        for step in range(self.first, self.last):
            places = range(step * self.batch_size, (step + 1) * self.batch_size)
            drawn = [divmod(place, self.num_records) for place in places[self.rank :: self.world]]
            yield [(epoch, int(order(epoch)[offset])) for epoch, offset in drawn]

    def __len__(self) -> int:
        """Number of batches."""
        return max(self.last - self.first, 0)

    def _order(self, epoch: int) -> np.ndarray:
        rng, in_order = np.random.default_rng((self.seed, epoch)), np.arange(self.num_records)
        if not self.shuffle:
            return in_order
        if not self.groups:
            return rng.permutation(self.num_records)
        groups = np.split(in_order, np.cumsum(self.groups)[:-1])
        mixed = rng.permutation(len(groups))
        windows = [mixed[first : first + WINDOW] for first in range(0, len(mixed), WINDOW)]
        return np.concatenate([rng.permutation(np.concatenate([groups[i] for i in window])) for window in windows])


class RecordError(ValueError):
    """A record cannot be prepared: in one line, also where a worker met it, to which the loader adds a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())


class PreparedRecords(Dataset[dict[str, dict[str, Any]]]):
    """Records as the schema prepares them."""

    def __init__(self, schema: Schema, records: Sequence[Record], seed: int, training: bool) -> None:
        self.schema, self.records, self.seed, self.training = schema, records, seed, training

    def __len__(self) -> int:
        """Number of records."""
        return len(self.records)

    def __getitem__(self, draw: Draw | int) -> dict[str, dict[str, Any]]:
        """A record, prepared with random numbers of its own."""
        epoch, number = draw if isinstance(draw, tuple) else (0, draw)
        rng = np.random.default_rng((self.seed, epoch, number))
        try:
            return self.schema.preprocess(self.records[number], rng, self.training)
        except ValueError as error:
            raise RecordError(str(error)) from error


@contextmanager
def workers_let_go() -> Iterator[None]:
    """Make errors that are raised where a batch is made hold on to no loader.

    Else the process could not exit: it would wait for workers who wait for it, since they ignore what ends them.
    """
    try:
        yield
    except BaseException as error:
        clear_frames(error.__traceback__)
        raise


def training_batches(
    schema: Schema, records: Sequence[Record], order: BatchOrder, num_workers: int = 0
) -> DataLoader[Any]:
    """Collated training batches in this order; ValueError for batches that no memory holds."""
    check_memory(
        f"batch_size = {order.batch_size}: the inputs",
        order.batch_size * num_bytes(schema.dummy_input(1, torch.device("meta"))),
    )
    prepared = PreparedRecords(schema, records, order.seed, training=True)
    return DataLoader(
        prepared,
        batch_sampler=order,
        collate_fn=schema.collate,
        num_workers=num_workers,
        worker_init_fn=ignore_stop_signals,
    )


def evaluation_batches(schema: Schema, records: Sequence[Record], batch_size: int, seed: int = 0) -> DataLoader[Any]:
    """All records once, in their order."""
    prepared = PreparedRecords(schema, records, seed, training=False)
    # Some loaders make room for a whole batch at once, also beyond the last record.
    count = max(min(batch_size, len(records)), 1)
    # Every loader draws a seed, of torch's global generator unless it has one of its own.
    return DataLoader(prepared, batch_size=count, collate_fn=schema.collate, generator=torch.Generator())
