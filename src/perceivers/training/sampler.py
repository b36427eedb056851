"""The sampler: the records of a step are a function of (seed, step), so that a resumed run continues exactly.

Workers and loaders hold no state: random preprocessing of a record depends on (seed, epoch, record) alone.
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

from perceivers.schema import Batch, Record, Schema
from perceivers.schema.memory import check_memory, num_bytes
from perceivers.training.masking import Masking
from perceivers.training.signals import ignore_stop_signals
from perceivers.training.streams import Unrolled, stream_names, turns

WINDOW = 8
"""Number of groups whose records are shuffled together."""

Draw = tuple[int, int]
"""Epoch and number of a record to load."""

NOISE = 1
"""Number that, added to (seed, epoch, record), seeds the noise of a record; not 0, which would change no seed."""


@dataclass(frozen=True)
class BatchOrder(Sampler[list[Draw]]):
    """Batches of (epoch, record) for the steps `first` to `last` - 1: the share of process `rank` of `world`."""

    seed: int
    num_records: int
    batch_size: int
    first: int
    last: int
    rank: int = 0
    world: int = 1
    shuffle: bool = True
    groups: tuple[int, ...] = ()
    """Sizes of groups of neighbouring records that are cheap to read together (shards); empty: no groups."""
    examples: Unrolled | None = None
    """Records of each example of a stream: they take the place of the records above. None: each record is one."""

    def __iter__(self) -> Iterator[list[Draw]]:
        """Yield this process's share of each batch.

        Each epoch is a new permutation of the records, or all of them in order. A batch may span two epochs.
        """
        order = lru_cache(maxsize=2)(self._order)
        for step in range(self.first, self.last):
            # Positions of the batch in the endless sequence of epochs; this process takes every `world`-th one.
            positions = range(step * self.batch_size, (step + 1) * self.batch_size)
            draws = [divmod(position, self.num_records) for position in positions[self.rank :: self.world]]
            numbers = [(epoch, int(order(epoch)[offset])) for epoch, offset in draws]
            yield numbers if self.examples is None else [(e, record) for e, n in numbers for record in self.examples[n]]

    def __len__(self) -> int:
        """Return the number of batches."""
        return max(self.last - self.first, 0)

    @property
    def num_samples(self) -> int:
        """Number of samples of a batch, over all processes."""
        return self.batch_size * (1 if self.examples is None else self.examples.length)

    def _order(self, epoch: int) -> np.ndarray:
        """Return the records of an epoch in order. Groups are shuffled, then records within each WINDOW groups."""
        rng, in_order = np.random.default_rng((self.seed, epoch)), np.arange(self.num_records)
        if not self.shuffle:
            return in_order
        if not self.groups:
            return rng.permutation(self.num_records)
        groups = np.split(in_order, np.cumsum(self.groups)[:-1])
        shuffled = rng.permutation(len(groups))
        windows = [shuffled[first : first + WINDOW] for first in range(0, len(shuffled), WINDOW)]
        return np.concatenate([rng.permutation(np.concatenate([groups[i] for i in window])) for window in windows])


class RecordError(ValueError):
    """An error for a record that cannot be preprocessed; one line, without the traceback that a worker adds to it."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())


class PreparedRecords(Dataset[dict[str, dict[str, Any]]]):
    """Records, preprocessed by the schema; with `noise_shape`, each comes with normal numbers for a bottleneck."""

    def __init__(
        self,
        schema: Schema,
        records: Sequence[Record],
        seed: int,
        training: bool,
        noise_shape: tuple[int, int] | None = None,
    ) -> None:
        self.schema, self.records, self.seed, self.training = schema, records, seed, training
        self.noise_shape = noise_shape

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.records)

    def __getitem__(self, draw: Draw | int) -> dict[str, dict[str, Any]]:
        """Return a preprocessed record; its random numbers depend on (seed, epoch, record) alone."""
        epoch, number = draw if isinstance(draw, tuple) else (0, draw)
        rng = np.random.default_rng((self.seed, epoch, number))
        try:
            sample = self.schema.preprocess(self.records[number], rng, self.training)
        except ValueError as error:
            raise RecordError(str(error)) from error
        if self.noise_shape is not None:
            rng = np.random.default_rng((self.seed, epoch, number, NOISE))
            sample["noise"] = {"bottleneck": rng.standard_normal(self.noise_shape, np.float32)}
        return sample

    def collate(self, samples: Sequence[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
        """Return preprocessed records as a batch, with their noise if they come with any."""
        batch = self.schema.collate(samples)
        if self.noise_shape is not None:
            noise = np.stack([sample["noise"]["bottleneck"] for sample in samples])
            batch["noise"] = {"bottleneck": torch.from_numpy(noise)}
        return batch


@contextmanager
def workers_let_go() -> Iterator[None]:
    """Clear the frames of an error, so that its traceback does not keep the loader and its workers alive.

    Otherwise the process could not exit: it would wait for its workers, which ignore the signals that end it.
    """
    try:
        yield
    except BaseException as error:
        clear_frames(error.__traceback__)
        raise


def training_batches(
    schema: Schema,
    records: Sequence[Record],
    order: BatchOrder,
    num_workers: int = 0,
    noise_shape: tuple[int, int] | None = None,
) -> DataLoader[Any]:
    """Return a loader of collated training batches in this order; ValueError for batches too large for the memory."""
    check_memory(
        f"batch_size = {order.batch_size}: the inputs",
        order.num_samples * num_bytes(schema.dummy_input(1, torch.device("meta"))),
    )
    prepared = PreparedRecords(schema, records, order.seed, training=True, noise_shape=noise_shape)
    return DataLoader(
        prepared,
        batch_sampler=order,
        collate_fn=prepared.collate,
        num_workers=num_workers,
        worker_init_fn=ignore_stop_signals,
    )


def evaluation_batches(
    schema: Schema,
    records: Sequence[Record],
    batch_size: int,
    seed: int = 0,
    order: list[list[int]] | None = None,
) -> DataLoader[Any]:
    """Return a loader of all records, once and in order; or of the batches of records that `order` lists."""
    prepared = PreparedRecords(schema, records, seed, training=False)
    if order is not None:
        generator = torch.Generator()
        return DataLoader(prepared, batch_sampler=order, collate_fn=schema.collate, generator=generator)
    # Some loaders allocate a whole batch at once, even if it is larger than the data.
    count = max(min(batch_size, len(records)), 1)
    # A DataLoader draws a seed; with a separate generator it does not advance torch's global one.
    return DataLoader(prepared, batch_size=count, collate_fn=schema.collate, generator=torch.Generator())


class EvaluationBatches:
    """All records once, as (masking, streams, batch): in order, or stream by stream, window after window."""

    def __init__(self, schema: Schema, records: Sequence[Record], batch_size: int, masking: Masking) -> None:
        self.batch_size, self.masking, self.names = batch_size, masking, stream_names(records, schema)
        self.order = list(turns(self.names, batch_size)) or None
        self.loader = evaluation_batches(schema, records, batch_size, masking.seed, self.order)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Masking, list[str], Batch]]:
        """Yield the masking of a batch's records, the streams of its samples (none without streams), and the batch."""
        for number, batch in enumerate(self.loader):
            numbers = [] if self.order is None else self.order[number]
            masking = self.masking._replace(first=number * self.batch_size, numbers=numbers)
            yield masking, [self.names[record] for record in numbers], batch
