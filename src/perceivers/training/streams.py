"""Streams: records that are consecutive windows, each begun with the latents that the window before ended with.

The records of a stream have the same name in the schema's field `stream`, and come in order of time. Records of
different streams may be mixed.
"""

import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

from perceivers.core.perceiver import PerceiverIO
from perceivers.core.reading import Encoded
from perceivers.modalities.raw import is_missing
from perceivers.schema import Batch, Record, Schema
from perceivers.training.masking import Masking


@dataclass(frozen=True)
class Unrolled(Sequence[list[int]]):
    """Training examples: `length` consecutive records of one stream each, as numbers of records."""

    records: np.ndarray
    """Numbers of all records, stream by stream."""
    starts: np.ndarray
    """The first record of each example, as an index of `records`."""
    length: int
    """Records of an example."""

    @classmethod
    def of(cls, names: Sequence[str], length: int) -> "Unrolled":
        """Return an example for each record with enough successors, given the streams of all records."""
        places = list(_places(names).values())
        short = [place for place in places if len(place) < length]
        if len(short) == len(places):
            most = max(map(len, places))
            raise ValueError(f"training.unroll = {length} is more than the {most} records of the longest stream")
        if short:
            text = f"{len(short)} of {len(places)} streams have fewer records than training.unroll = {length}"
            warnings.warn(f"{text}: they are not trained on", stacklevel=3)
        sizes = np.array([len(place) for place in places])
        index = np.concatenate([np.arange(size)[::-1] for size in sizes])  # number of successors
        return cls(np.concatenate(places), np.flatnonzero(index >= length - 1), length)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.starts)

    def __getitem__(self, example: Any) -> Any:
        """Return the records of an example, in order of time."""
        start = int(self.starts[example])
        return self.records[start : start + self.length].tolist()


class StreamStates:
    """The latents that each stream has reached, by name."""

    def __init__(self) -> None:
        self.latents: dict[str, Float[Tensor, "n d"]] = {}

    def before(self, streams: Sequence[str]) -> Float[Tensor, "b n d"] | None:
        """Return the latents that the next windows of these streams begin with; None: the model's own.

        ValueError for streams of which only some have a state: the first windows of the others were not finite.
        """
        without = [name for name in streams if name not in self.latents]
        if len(without) == len(streams):
            return None
        if without:
            raise ValueError(f"stream {without[0]!r} has no state to carry on: that of its first window is not finite")
        return torch.stack([self.latents[name] for name in streams])

    def keep(self, streams: Sequence[str], latents: Float[Tensor, "b n d"]) -> None:
        """Keep the latents after windows of these streams; a stream whose latents are not finite stays as it was."""
        if streams:
            finite = latents.isfinite().flatten(1).all(1).tolist()
            new = zip(streams, latents, finite, strict=True)
            self.latents |= {name: state for name, state, is_finite in new if is_finite}


def stream_names(records: Sequence[Record], schema: Schema) -> list[str]:
    """Return the stream of each record; empty if the schema names none. ValueError for a record without one."""
    if schema.stream is None:
        return []
    names = [record.get(schema.stream) for record in records]
    missing = [number for number, name in enumerate(names, start=1) if is_missing(name)]
    if missing:
        raise ValueError(f"record {missing[0]} has no {schema.stream!r}, the field that names its stream")
    return [str(name) for name in names]


def turns(names: Sequence[str], batch_size: int, known: Collection[str] = ()) -> Iterator[list[int]]:
    """Yield the indices of records in batches, so that each record comes after its predecessor in the stream.

    A batch has one record of each of its streams. These all begin, or all carry on; streams that are `known` carry on.
    """
    places, known = _places(names), frozenset(known)  # the caller may add to it between two batches
    for carries_on in (False, True):
        group = [place for name, place in places.items() if (name in known) == carries_on]
        group.sort(key=len, reverse=True)
        for first in range(0, len(group), batch_size):
            chunk = group[first : first + batch_size]
            for turn in range(len(chunk[0])):
                yield [place[turn] for place in chunk if turn < len(place)]


def last_of_each(names: Sequence[str], fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Split records into the first and the last ones of each stream, the last being this fraction; both ascending."""
    places = _places(names).values()
    cuts = [len(place) - round(fraction * len(place)) for place in places]
    first = [place[:cut] for place, cut in zip(places, cuts, strict=True)]
    last = [place[cut:] for place, cut in zip(places, cuts, strict=True)]
    return np.sort(np.concatenate(first)), np.sort(np.concatenate(last))


def windows(batch: Batch, number: int) -> list[Batch]:
    """Return the first windows of all examples of a batch, then the second ones, and so on.

    A batch holds the `number` windows of its first example, then those of the second one.
    """
    return [chosen_samples(batch, slice(window, None, number)) for window in range(number)]


def interleaved(values: Sequence[Any]) -> Any:
    """Return what was computed of each of the `windows` as one batch in the order of the examples again."""
    return tree_map(lambda *each: torch.stack(each, dim=1).flatten(0, 1), *values)


def chosen_samples(batch: Any, index: Any) -> Any:
    """Return some samples of a batch."""
    return tree_map(lambda leaf: leaf[index] if isinstance(leaf, Tensor) else leaf, batch)


def predict_in_turn(
    model: PerceiverIO,
    batch: Batch,
    streams: Sequence[str],
    states: StreamStates | None = None,
    masking: Masking | None = None,
    decode: Callable[[Encoded, Batch], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return the predictions for a batch whose samples belong to these streams, each carried on from the one before.

    `states` has what the streams have reached, and keeps it; `decode` decodes a part of the batch.
    """
    states, schema = states or StreamStates(), cast(Schema, model.schema)
    decode = decode or (lambda encoded, part: model.decode(encoded, schema.points(part["targets"])))
    found, order, waiting = [], list[int](), deque(turns(streams, len(streams), states.latents.keys()))
    while waiting:
        # A stream whose first window had latents that are not finite begins anew, apart from those that carry on.
        numbers = waiting.popleft()
        if stateless := [number for number in numbers if streams[number] not in states.latents]:
            carrying = [number for number in numbers if streams[number] in states.latents]
            waiting.extendleft([carrying] if carrying else [])
            numbers = stateless
        part, names = chosen_samples(batch, torch.tensor(numbers)), [streams[number] for number in numbers]
        chosen = masking and masking._replace(numbers=[masking.first + number for number in numbers])
        encoded = model.encode(part["inputs"], masking=cast(Any, chosen), latents=states.before(names))
        states.keep(names, encoded.latents)
        found.append(decode(encoded, part))
        order += numbers
    place = torch.tensor(order).argsort()
    return cast(dict[str, Any], tree_map(lambda *each: torch.cat(each)[place.to(each[0].device)], *found))


def _places(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the indices of the records of each stream."""
    places: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        places.setdefault(name, []).append(number)
    return places
