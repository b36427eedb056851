"""Schema: named inputs and outputs. Schemas, configs and recipes to and from JSON and YAML, errors naming the place."""

import dataclasses
import functools
import json
import math
import operator
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
import yaml
from pydantic import ConfigDict, Field, GetCoreSchemaHandler, TypeAdapter, ValidationError, with_config
from pydantic_core import CoreSchema, ErrorDetails, core_schema
from torch import Tensor
from torch.utils._pytree import tree_leaves
from typing_extensions import TypedDict

from perceivers.budgets import Lines, check_memory, from_yaml
from perceivers.core.arguments import check_names, check_new_name, near
from perceivers.core.checks import check_fields
from perceivers.files import one_line, printable, read_text
from perceivers.modalities import KINDS
from perceivers.modalities.cells import Row
from perceivers.modalities.guard import Guard
from perceivers.modalities.kind import Kind, Raw, asks_in_vain, named
from perceivers.modalities.label import check_classes
from perceivers.modalities.points import Points

Record = Mapping[str, Any]
"""One sample as a data set gives it: fields by name."""

Batch = Mapping[str, Mapping[str, Any]]
"""Samples collated: "inputs" and "targets", raw, each by name."""

MOST_NAMES = 1024
"""Inputs, and outputs, that a schema may have: each is a part of the model, which takes milliseconds to count."""

LONGEST_COMPLAINT = 900
"""Characters that are said of a file that is wrong; names in it may be any text."""

T = TypeVar("T")


@with_config(ConfigDict(extra="forbid"))
class SchemaInFile(TypedDict):
    """Inputs and outputs by name, of the closed list of kinds."""

    inputs: dict[str, Annotated[functools.reduce(operator.or_, KINDS), Field(discriminator="kind")]]  # type: ignore[valid-type]
    outputs: dict[str, Annotated[functools.reduce(operator.or_, KINDS), Field(discriminator="kind")]]  # type: ignore[valid-type]


@dataclass(frozen=True)
class Schema:
    """What goes in and what must come out."""

    inputs: Mapping[str, Kind]
    """Inputs by name."""
    outputs: Mapping[str, Kind]
    """Outputs by name."""

    def __post_init__(self) -> None:
        for side, specs in (("inputs", self.inputs), ("outputs", self.outputs)):
            if not specs:
                raise ValueError(f"{side} is empty: name at least one")
            if not isinstance(specs, Mapping):
                raise ValueError(f"{side} of type {type(specs).__name__}: give a dictionary of names")
            if len(specs) > MOST_NAMES:
                raise ValueError(
                    f"{side}: {len(specs):,} names, at most {MOST_NAMES:,}: several columns can be one, of kind records"
                )
            check_specs(side, specs, self.inputs)

    def changed(self, name: str, **fields: Any) -> "Schema":
        """The same schema with some fields of one input or output replaced."""
        check_names("input or output", [name], [*self.inputs, *self.outputs])
        inputs, outputs = (
            {n: replace(spec, **fields) if n == name else spec for n, spec in specs.items()}
            for specs in (self.inputs, self.outputs)
        )
        return type(self)(inputs, outputs)

    @functools.cached_property
    def uncorrupted(self) -> "Schema":
        """The same schema as a prediction takes records: with all that they have, the same each time."""
        return type(self)({name: spec.uncorrupted() for name, spec in self.inputs.items()}, self.outputs)

    def read(self, record: Record) -> dict[str, Any]:
        """A record's values as {"inputs", "targets"}, None for what it lacks; ValueError for an unreadable one."""
        sides = {"inputs": self.inputs, "targets": self.outputs}
        return {
            side: {name: _value(record, name, spec) for name, spec in specs.items()} for side, specs in sides.items()
        }

    def fit(self, records: Sequence[Record]) -> "Schema":
        """The same schema with statistics and vocabularies of the training part filled in."""
        if all(type(spec).fit is Kind.fit for spec in (*self.inputs.values(), *self.outputs.values())):
            return self  # without making all records

        def fitted(name: str, spec: Kind) -> Kind:
            values = (_value(record, name, spec) for record in records)
            return named(name, spec.fit, (value for value in values if value is not None))

        inputs = {name: fitted(name, spec) for name, spec in self.inputs.items()}
        return type(self)(inputs, {name: fitted(name, spec) for name, spec in self.outputs.items()})

    def prepare(
        self, record: Record, rng: np.random.Generator, training: bool, outputs: Collection[str] | None = None
    ) -> dict[str, dict[str, Any]]:
        """One record as {"inputs", "targets"}, None for what it lacks and for targets of other outputs than these.

        All that is random comes from `rng`.
        """
        inputs: dict[str, Any] = {}
        for name, spec in self.inputs.items():
            value = _value(record, name, spec)
            # The draw is made for every record, so that what follows does not depend on what is missing.
            dropped = rng.random() < spec.drop_prob and (training or spec.drop_at_eval)
            inputs[name] = None if value is None or dropped else named(name, spec.prepare, value, rng, training)
        targets = {}
        for name, spec in self.outputs.items():
            left_out = asks_in_vain(spec, inputs) or not (outputs is None or name in outputs)
            value = None if left_out else _value(record, name, spec)
            targets[name] = None if value is None else named(name, spec.target, value, rng, inputs, training)
        return {"inputs": inputs, "targets": targets}

    def collate(self, samples: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Raw]]:
        """Prepared records as one batch; what no sample of it has is left out."""
        batch: dict[str, dict[str, Raw]] = {}
        for side, specs in (("inputs", self.inputs), ("targets", self.outputs)):
            columns = {name: [sample[side][name] for sample in samples] for name in specs}
            present = {name: values for name, values in columns.items() if any(v is not None for v in values)}
            batch[side] = {name: named(name, specs[name].collate, values) for name, values in present.items()}
        return batch

    def points(self, targets: Mapping[str, Raw]) -> dict[str, Points]:
        """Where each output must be asked, to be compared with its target."""
        asked = {name: self.outputs[name].points(target) for name, target in targets.items()}
        return {name: points for name, points in asked.items() if points is not None}

    @property
    def guard(self) -> Guard:
        """Checks of what a caller gives a model of this schema."""
        return Guard(self.inputs, self.outputs)

    def blank(self, batch_size: int, device: torch.device) -> tuple[dict[str, Raw], dict[str, Points]]:
        """Raw inputs of the trained size and points of the outputs that need them, their content irrelevant.

        ValueError for sizes that no memory holds.
        """
        if device.type != "meta":
            shapes, _ = self.blank(batch_size, torch.device("meta"))
            check_memory("inputs of the trained size", num_bytes(shapes))
        raw = {name: named(name, spec.blank, batch_size, device) for name, spec in self.inputs.items()}
        points = {name: spec.blank_points(batch_size, device) for name, spec in self.outputs.items()}
        return raw, {name: asked for name, asked in points.items() if asked is not None}

    def losses(self, predictions: Mapping[str, Raw], targets: Mapping[str, Raw]) -> dict[str, Tensor]:
        """Each output's loss times its weight; the training loss is their sum."""
        losses = {}
        for name, spec in self.outputs.items():
            if name in targets and name in predictions:
                device = tree_leaves(predictions[name])[0].device
                target = named(f"target {name!r}", spec.checked_target, targets[name], device)
                losses[name] = spec.weight * named(f"target {name!r}", spec.loss, predictions[name], target)
        return losses

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """In files, kinds come from the closed list alone."""
        return core_schema.no_info_after_validator_function(
            lambda sides: cls(**sides),
            handler.generate_schema(SchemaInFile),
        )


def check_specs(side: str, specs: Mapping[str, Any], inputs: Collection[str]) -> None:
    """ValueError naming one of the "inputs" or "outputs" that no model has, beside inputs of these names."""
    for name, spec in specs.items():
        check_new_name(side, name)
        named(f"{side}.{name}", _check_spec, spec)
        if side == "outputs" and spec.of is not None:
            check_names(f"input in outputs.{name}.of:", [spec.of], inputs)


def _check_spec(spec: Any) -> None:
    """Raise a ValueError for what is no declared input or output, or has numbers that mean nothing."""
    if not isinstance(spec, Kind):
        raise ValueError(f"{spec!r:.99} is no declared structure, such as Numbers(count=3)")
    check_fields(spec)
    check_classes(getattr(spec, "classes", ()))


def _value(record: Record, name: str, spec: Kind) -> Any:
    value = record.get(spec.key or name)
    return named(name, spec.read, value, record.files) if isinstance(record, Row) and value is not None else value


def find_kind(specs: Mapping[str, Any], kind: type[T]) -> tuple[str, T]:
    """The first input or output of a kind, with its name; ValueError if there is none."""
    for name, spec in specs.items():
        if isinstance(spec, kind):
            return name, spec
    found = ", ".join(f"{name} ({type(spec).__name__})" for name, spec in specs.items())
    raise ValueError(f"the model has no {kind.__name__}, only {found}")


def num_bytes(tensors: Any) -> int:
    """Return the bytes of all tensors of nested dictionaries and lists."""
    leaves = tree_leaves(tensors)
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor))


def to_plain(value: Any) -> Any:
    """Dataclasses as the dictionaries, lists, numbers and names that files hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def from_plain(kind: type[T], plain: Any, source: str = "", lines: Mapping[tuple[str, ...], int] | None = None) -> T:
    """A dataclass from plain values; ValueError naming the place (and the line) of the first thing that is wrong."""
    if wild := next(_wild_numbers(plain, source), ""):
        raise ValueError(wild)
    found: T = checked(kind, plain, source, lines)
    return found


def checked(
    kind: Any, plain: Any, source: str, lines: Mapping[tuple[str, ...], int] | None = None, strict: bool = False
) -> Any:
    """Return plain values as the type that declares them; ValueError naming the first place that is otherwise.

    `strict`: a text is no number, a truth value neither.
    """
    try:
        return _adapter(kind).validate_python([plain], strict=strict or None)[0]
    except ValidationError as error:
        raise ValueError(_message(kind, plain, error, source, lines or {})) from None


@functools.cache
def _adapter(kind: Any) -> Any:
    # Inside a list the dataclasses take the adapter's configuration: unknown fields are errors.
    return TypeAdapter(list[kind], config=ConfigDict(extra="forbid"))


def _wild_numbers(plain: Any, place: str) -> Iterator[str]:
    """Yield what is wrong with each number that no computation takes: NaN, beyond float32, beyond 64 bits."""
    if isinstance(plain, Mapping | list | tuple):
        items = plain.items() if isinstance(plain, Mapping) else enumerate(plain)
        for key, value in items:
            yield from _wild_numbers(value, f"{place}.{key}" if place else str(key))
    elif isinstance(plain, float) and (math.isnan(plain) or float(np.finfo(np.float32).max) < abs(plain) < math.inf):
        yield f"{place}: {plain} must be a number up to {np.finfo(np.float32).max:.3g}"
    elif isinstance(plain, int) and not -(2**63) <= plain < 2**63:
        yield f"{place}: a number of {plain.bit_length()} bits must fit into 64"


def with_settings(value: T, settings: Iterable[str]) -> T:
    """A dataclass after settings like "training.num_steps=200", values as in YAML; ValueError naming a wrong one."""
    plain = to_plain(value)
    for setting in settings:
        place, separator, text = setting.partition("=")
        if not separator:
            raise ValueError(f"setting {setting!r} must be place=value, e.g. training.num_steps=200")
        *parents, name = place.split(".")
        node = plain
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise ValueError(f"setting {setting!r}: there is no {'.'.join(parents)}")
        node[name], _ = from_yaml(text, f"setting {setting[:99]!r}")
    return from_plain(type(value), plain)


def to_yaml(value: Any) -> str:
    """A dataclass as YAML."""
    return yaml_text(to_plain(value))


def yaml_text(plain: Any, **style: Any) -> str:
    """Return plain values as YAML that can be printed: control characters are spelled out, in quotes."""
    return printable(yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **style))


class _Dumper(yaml.SafeDumper):
    """Quotes what cannot be printed as it is."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if printable(text) == text else '"'
    ),
)


def to_json(value: Any) -> str:
    """A dataclass as JSON."""
    return json.dumps(to_plain(value), indent=2, ensure_ascii=False) + "\n"


def from_file(kind: type[T], path: str | Path) -> T:
    """A dataclass from a YAML or JSON file; errors name file, line and place."""
    path = Path(path)
    plain, lines = read_plain(path)
    return from_plain(kind, plain, str(path), lines)


def read_plain(path: Path) -> tuple[Any, Lines]:
    """Content of a YAML or JSON file, and the line of each place in it."""
    return from_yaml(read_text(path), str(path))  # JSON is YAML


def json_schema(kind: Any) -> dict[str, Any]:
    """JSON schema of a dataclass, for editors that check what they write."""
    full = _adapter(kind).json_schema()
    return {**full["items"], "$defs": full.get("$defs", {})}


def _message(kind: Any, plain: Any, error: ValidationError, source: str, lines: Mapping[Any, int]) -> str:
    errors = error.errors(include_url=False)
    first = _relevant(errors)
    place = _place(first, plain)
    known = place
    while known and known not in lines:
        known = known[:-1]
    where = ":".join(filter(None, [source, str(lines[known]) if known in lines else ""]))
    what = _explain(kind, first)
    if first["type"] == "literal_error" and place[-1:] == ("kind",):
        expected = [e["ctx"]["expected"] for e in errors if "expected" in e.get("ctx", ()) and e["loc"][-1] == "kind"]
        what = _unknown_kind(str(first["input"]), [kind for text in expected for kind in re.findall("'(.*?)'", text)])
    return one_line(": ".join(filter(None, [where, ".".join(place), what])), LONGEST_COMPLAINT)


_LAST = ("dataclass_type", "none_required")
"""Errors of the branches of a union that tell least: what else is wrong comes first."""


def _relevant(errors: Sequence[ErrorDetails]) -> ErrorDetails:
    # A union without a discriminator reports every branch; those whose `kind` is another one are noise.
    other = {error["loc"][:-1] for error in errors if error["type"] == "literal_error" and error["loc"][-1] == "kind"}
    wanted = [error for error in errors if error["loc"][:-1] not in other]
    return min(wanted or errors, key=lambda error: _LAST.index(error["type"]) if error["type"] in _LAST else -1)


def _place(error: ErrorDetails, plain: Any) -> tuple[str, ...]:
    # Between the keys of the file stand names of classes and kinds that were tried: follow the file.
    place: list[str] = []
    node: Any = [plain]
    for part in error["loc"]:
        inside = part in node if isinstance(node, Mapping) else isinstance(node, list) and part in range(len(node))
        if inside or (error["type"].startswith("missing") and part == error["loc"][-1]):
            place.append(str(part))
            node = node[part] if inside else None
    return tuple(place[1:])


def _explain(kind: Any, error: ErrorDetails) -> str:
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown field{_near(str(error['loc'][-1]), _field_names(json_schema(kind)))}"
    if error["type"] == "union_tag_invalid":
        return _unknown_kind(error["ctx"]["tag"], _kind_names())
    if error["type"] == "union_tag_not_found":
        return f"needs a kind: one of {', '.join(_kind_names())}"
    message = error["msg"].removeprefix("Value error, ")
    return message if isinstance(error["input"], Mapping) else f"{message}, not {error['input']!r:.99}"


def _unknown_kind(tag: str, kinds: Sequence[str]) -> str:
    return f"unknown kind {tag!r}{_near(tag, kinds)}; there are {', '.join(kinds)}"


def _near(name: str, known: Iterable[str]) -> str:
    return near(name, set(known) - {name})  # a field of another kind may have that name


def kind_name(kind: Kind | type[Kind]) -> str:
    """What files call a kind; the name of its class if they do not know it."""
    return str(getattr(kind, "kind", type(kind).__name__))


def _kind_names() -> list[str]:
    return [kind_name(kind) for kind in KINDS]


def _field_names(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(_field_names, schema))
    if not isinstance(schema, Mapping):
        return set()
    return set(schema.get("properties", ())).union(*map(_field_names, schema.values()))
