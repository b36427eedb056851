"""Preprocessing of a record into values that can be collated, and the pass that fits a schema to records."""

from collections.abc import Callable, Collection, Mapping
from itertools import chain
from typing import Any

import numpy as np

from perceivers.modalities.modality import Modality, lacks_source, named
from perceivers.modalities.table_cells import Row

Record = Mapping[str, Any]
"""A sample of a data set: fields by name."""

Specs = Mapping[str, Modality]
"""The inputs or the outputs of a schema, by name."""

Values = Callable[[str, Modality], Any]
"""Function that returns a record's value for the input or output of this name, None if it is missing."""


def values_of(record: Record) -> Values:
    """Return a function that returns the values of a record; specs that parse a cell alike share the result."""
    parsed: list[tuple[str, Modality, Any]] = []

    def value(name: str, spec: Modality) -> Any:
        key = spec.key or name
        cell = record.get(key)
        if cell is None or not isinstance(record, Row):
            return cell
        for other_key, other, found in parsed:
            if other_key == key and spec.reads_like(other):
                return found
        parsed.append((key, spec, named(name, spec.read, cell, record.files)))
        return parsed[-1][2]

    return value


def preprocessed(
    inputs: Specs,
    outputs: Specs,
    values: Values,
    rng: np.random.Generator,
    training: bool,
    wanted: Collection[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the values of a record as {"inputs", "targets"}, preprocessed; targets not in `wanted` are None."""
    prepared: dict[str, Any] = {}
    for name, spec in inputs.items():
        value = values(name, spec)
        # Draw for every record, so that later draws do not depend on which values are missing.
        dropped = rng.random() < spec.drop_prob and (training or spec.drop_at_eval)
        prepared[name] = None if value is None or dropped else named(name, spec.preprocess, value, rng, training)
    targets = {}
    for name, spec in outputs.items():
        left_out = lacks_source(spec, prepared) or not (wanted is None or name in wanted)
        value = None if left_out else values(name, spec)
        targets[name] = None if value is None else named(name, spec.target, value, rng, prepared, training)
    return {"inputs": prepared, "targets": targets}


class Fitting:
    """The single pass over the records to which inputs and outputs are fitted.

    With `check`, each record is preprocessed as well, by all specs that need not be fitted first.
    """

    def __init__(self, inputs: Specs, outputs: Specs, check: bool = False) -> None:
        self.sides, self.check = (inputs, outputs), check
        # For each side, a list of value summaries for each spec that is not fitted.
        self._summaries = [{n: list[Any]() for n, spec in specs.items() if not spec.is_fitted} for specs in self.sides]
        # The specs that can be checked before the fit.
        ready = {name: spec for name, spec in inputs.items() if _is_ready(spec)}
        outputs_ready = {name: spec for name, spec in outputs.items() if _is_ready(spec) and spec.of in (None, *ready)}
        self._ready = ready, outputs_ready

    @property
    def is_needed(self) -> bool:
        """True if there is something to fit or to check."""
        return self.check or any(self._summaries)

    def add(self, record: Record) -> None:
        """Add a record to the fit; ValueError, and nothing is added, if the record cannot be used."""
        values = values_of(record)
        if self.check:
            for name, spec in chain.from_iterable(specs.items() for specs in self.sides):
                values(name, spec)
            preprocessed(*self._ready, values, np.random.default_rng(0), training=False)
        found = []
        for specs, summaries in zip(self.sides, self._summaries, strict=True):
            for name, kept in summaries.items():
                if (value := values(name, specs[name])) is not None:
                    found.append((kept, named(name, specs[name].summary, value)))
        for kept, summary in found:
            kept.append(summary)

    def fitted(self) -> tuple[dict[str, Modality], dict[str, Modality]]:
        """Return inputs and outputs, fitted to all records that were added."""
        inputs, outputs = (
            {n: named(n, spec.fit, summaries[n]) if n in summaries else spec for n, spec in specs.items()}
            for specs, summaries in zip(self.sides, self._summaries, strict=True)
        )
        return inputs, outputs


def _is_ready(spec: Modality) -> bool:
    return spec.is_fitted or not spec.preprocess_needs_fit
