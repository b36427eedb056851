"""Predictions on a cluster with Ray Data: the same batches as in one process, in order, made by several workers."""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from perceivers.core.perceiver import PerceiverIO
from perceivers.data.formats.writers import PlainRow
from perceivers.runs.prediction import REASON, check_stateless, predict_rows, too_many
from perceivers.schema import Record

Batch = Mapping[str, Any]
"""Arrays by column, as Ray Data passes them."""

BLOCKS = 8
"""Blocks of batches per worker: enough that no worker waits long for the slowest one."""


def ray_data() -> Any:
    """Import Ray Data; if Ray is missing, a ValueError says how to install it."""
    try:
        import ray.data
    except ImportError:
        raise ValueError("several workers need Ray: pip install perceivers[cluster]") from None
    return ray


def predict_over_cluster(
    model: PerceiverIO, records: Sequence[Record], workers: int, batch_size: int, max_bad_rows: int = 0, **options: Any
) -> Iterator[PlainRow]:
    """Yield the rows of `predict_rows` (with its `options`), made by `workers` processes, each with its own GPU if any.

    The cluster is the one at RAY_ADDRESS, or one that is started on this machine. Model and records are sent to it.
    """
    check_stateless(model, "several workers")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports to the makers of Ray
    ray, bad_rows = ray_data(), 0
    ray.init(ignore_reinit_error=True, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    device = next(model.parameters()).device.type
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it prints its plans
    # Number the batches before the workers start: they may hold all CPUs. A worker takes a block at a time.
    count = max(1, -(-len(records) // batch_size))
    numbers = ray.data.range(count, override_num_blocks=min(count, BLOCKS * workers)).materialize()
    batches = numbers.map_batches(
        Predictor,
        fn_constructor_args=(model.cpu(), records, device, batch_size, {**options, "max_bad_rows": max_bad_rows}),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers, count)),
        num_gpus=int(device == "cuda"),
    )
    # A worker counts the unreadable rows of its batch alone, so those of all batches are counted here.
    for batch in batches.iter_rows():
        result = json.loads(batch["result"])
        if isinstance(result, str):
            raise ValueError(result)
        for row in result:
            bad_rows += row.get(REASON) is not None
            if bad_rows > max_bad_rows:
                raise too_many(row[REASON], bad_rows, max_bad_rows)
            yield row


class Predictor:
    """A worker, which maps numbers of batches to their rows as JSON, or to an error message."""

    def __init__(
        self, model: PerceiverIO, records: Sequence[Record], device: str, batch_size: int, options: Mapping[str, Any]
    ) -> None:
        self.model, self.records, self.batch_size, self.options = model.to(device), records, batch_size, options
        torch.set_num_threads(1)

    def __call__(self, batch: Batch) -> dict[str, list[str]]:
        """Return the rows of each batch whose number is given, as JSON."""
        return {"result": [json.dumps(self._rows(int(number))) for number in batch["id"]]}

    def _rows(self, number: int) -> list[PlainRow] | str:
        first = number * self.batch_size
        records = self.records[first : first + self.batch_size]
        try:
            return list(predict_rows(self.model, records, self.batch_size, first=first, **self.options))
        except ValueError as error:
            return str(error)
