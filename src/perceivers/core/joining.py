"""Several named inputs as one set of tokens, several named outputs as one set of queries, and back."""

import weakref
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from perceivers.core.arguments import about, check_batches, given, in_own_range, is_in_range, is_whole, near
from perceivers.core.initialisers import plain_linear, trained_vector
from perceivers.core.interfaces import InputAdapter, InputSpec, OutputAdapter, OutputQuery, Part, Points
from perceivers.core.linear_map import dtype_of, is_linear_map, linear_map
from perceivers.core.queries import given_points
from perceivers.core.reading import Encoded, Extent
from perceivers.core.tokens import Segment, Tokens, blank_where_absent

JoinRule = Literal["pad", "project"]

MOST_LISTED = 50
"""Names that a message lists."""


class Join(nn.Module):
    """Brings segments to one width, `channels`, so that they can stand behind one another.

    "project": a linear map each; adding a segment changes no other weight. "pad": a trained vector behind each that is
    narrower than the widest plus `min_padding` (official `MultimodalPreprocessor` and `MultimodalDecoder`).
    """

    def __init__(self, widths: Mapping[str, int], rule: JoinRule, channels: int, min_padding: int) -> None:
        super().__init__()
        self.channels = channels if rule == "project" else max(widths.values()) + min_padding
        missing = {name: self.channels - width for name, width in widths.items()}
        self.projections, self.paddings = nn.ModuleDict(), nn.ParameterDict()
        for name, width in widths.items():
            if rule == "project":
                self.projections[name] = plain_linear(width, channels)
            elif missing[name]:
                self.paddings[name] = trained_vector(missing[name])

    def forward(self, name: str, segment: Segment) -> Segment:
        """The segment in the common width."""
        if name in self.projections:
            projection = self.projections[name]
            if is_linear_map(projection):
                weight, bias = linear_map(projection)
                return replace(segment, projection=(weight, bias))
            with in_own_range(segment.device):
                tokens = projection(segment.dense(dtype_of(projection)))
            return Segment(content=tokens, mask=segment.mask, grid=segment.grid)
        return replace(segment, constant=self.paddings[name]) if name in self.paddings else segment


def mask_probs(inputs: Mapping[str, InputSpec]) -> dict[str, tuple[float, bool]]:
    """Of each input that has a mask token: how probable it is, and whether in evaluation too."""
    return {name: (spec.mask_prob, spec.mask_at_eval) for name, spec in inputs.items() if spec.mask_prob is not None}


class Masking(NamedTuple):
    """Which tokens an evaluation masks at random: a function of seed, record, input and token, whatever the batch."""

    probs: Mapping[str, float]
    """How probable the mask token is in each input; 0 where nothing is said."""
    seed: int = 0
    """Seed of the evaluation."""
    first: int = 0
    """Number of the record that is the first sample."""

    @torch.compiler.disable
    def masked(self, name: str, shape: tuple[int, int], device: torch.device) -> Bool[Tensor, "b m"]:
        """Return which tokens of an input are masked."""
        key = zlib.crc32(name.encode())
        draws = [np.random.default_rng((self.seed, self.first + n, key)).random(shape[1]) for n in range(shape[0])]
        return (torch.from_numpy(np.stack(draws)) < self.probs.get(name, 0.0)).to(device)


class InputAdapters(nn.Module):
    """All inputs: raw arrays by name to one set of tokens; hides tokens behind mask tokens where the schema says so."""

    def __init__(
        self, adapters: Mapping[str, InputAdapter], join: Join, mask_probs: Mapping[str, tuple[float, bool]]
    ) -> None:
        super().__init__()
        self.adapters, self.join, self.mask_probs = nn.ModuleDict(adapters), join, dict(mask_probs)
        self.channels = join.channels
        self.mask_tokens = nn.ParameterDict({name: trained_vector(join.channels) for name in mask_probs})

    def forward(
        self,
        raw: Any,
        missing: Iterable[str] | None = None,
        device: torch.device | None = None,
        masking: Masking | None = None,
    ) -> tuple[Tokens, dict[str, Segment]]:
        """All tokens in one width; and each input's own, before they were joined and hidden.

        Tensors must be on `device`, arrays go there (None: tensors may be anywhere).
        An input that is not given (absent or None) is left out; one that has a mask token is hidden instead, also in
        single samples that lack it. With `missing`, of those not given only these are hidden, and no sample of a Part,
        since another Part may have what this one lacks. Outside training, only `masking` masks tokens at random.
        """
        found = self.by_name(raw)
        own = {
            name: about("input", name, self._read, name, found[name], device) for name in self.adapters if name in found
        }
        if not own and not missing:
            raise ValueError(f"no input given: the model reads {', '.join(self.adapters)}")
        check_batches("inputs", {name: segment.batch_size for name, segment in own.items()})
        joined = {}
        for name in self.adapters:
            hidden = missing is None or name in missing
            segment = own[name] if name in own else self._absent(name) if hidden else None
            if segment is not None:
                joined[name] = self.join(name, segment)
            if name in joined and name in self.mask_probs:
                joined[name] = self._hide(name, joined[name], name not in own, masking)
                is_part = missing is not None and isinstance(found.get(name), Part)
                joined[name] = joined[name] if is_part else self._hide_lacking(name, joined[name])
        return Tokens(joined), own

    def by_name(self, raw: Any) -> dict[str, Any]:
        """Return the inputs that are given, by name: a dictionary, or the only input as it is."""
        if not isinstance(raw, Mapping):
            if len(self.adapters) != 1:
                raise ValueError(f"several inputs: give a dictionary of {', '.join(self.adapters)}")
            raw = {next(iter(self.adapters)): raw}
        check_names("input", raw, self.adapters)
        return {name: value for name, value in raw.items() if value is not None}

    def extents(self, raw: Any) -> dict[str, Extent | None]:
        """Return which part of each input is given (None: all of it); without sets, whose parts nothing tells apart."""
        found = raw if isinstance(raw, Mapping) else self.by_name(raw)
        return {name: _extent(found[name]) for name, own in self.adapters.items() if name in found and not own.is_set}

    def _read(self, name: str, value: Any, device: torch.device | None) -> Any:
        is_part = isinstance(value, Part)
        if is_part and not self.adapters[name].reads_parts:
            raise ValueError("it is no grid of independent tokens: give it whole, not as a Part")
        value = replace(value, values=given(value.values, device)) if is_part else given(value, device)
        return self.adapters[name](value)

    def _absent(self, name: str) -> Segment | None:
        adapter = self.adapters[name]
        assert isinstance(adapter, InputAdapter)
        return adapter.absent(self.mask_tokens[name].device) if name in self.mask_probs else None

    def _hide(self, name: str, segment: Segment, absent: bool, masking: Masking | None) -> Segment:
        if segment.content is None:
            return segment
        (prob, at_eval), shape, device = self.mask_probs[name], segment.content.shape[:2], segment.content.device
        if self.training:
            # Bernoulli draws are made even for certainties: uniform numbers are never below 0 and always below 1.
            hidden = torch.rand(shape, device=device) < (1.0 if absent else prob)
        elif absent or masking is None:  # a prediction uses all that it is given, but for what is always masked
            hidden = torch.full(shape, absent or (at_eval and prob == 1), device=device)
        else:
            hidden = masking.masked(name, shape, device)
        # What is hidden may be NaN or too large: nothing looks at it.
        hides = not absent and (self.training or masking is not None or (at_eval and prob == 1))
        content = blank_where_absent(segment.content, ~hidden) if hides else segment.content
        return replace(segment, content=content, stand_in=self.mask_tokens[name], hidden=hidden)

    def _hide_lacking(self, name: str, segment: Segment) -> Segment:
        """Return tokens where a sample that has none has as many mask tokens as if its whole batch lacked the input."""
        mask, hidden, absent = segment.mask, segment.hidden, self._absent(name)
        if mask is None or hidden is None or absent is None:
            return segment
        usual = torch.arange(segment.num_tokens, device=mask.device) < absent.num_tokens
        lacking = ~mask.any(dim=1, keepdim=True) & usual
        return replace(segment, mask=mask | lacking, hidden=hidden | lacking)


class LiveInputs(Mapping[str, InputAdapter]):
    """A model's inputs as they are now: adapters, wrappers and other modules may have been put in their place.

    It holds no module, so that it is neither registered nor keeps a model alive; a copied model's is that of the copy.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = weakref.ref(model)

    def __getitem__(self, name: str) -> Any:
        """Return the module that reads an input: its adapter, or what was put around it."""
        return self._adapters()[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._adapters())

    def __len__(self) -> int:
        """Return the number of inputs."""
        return len(self._adapters())

    def __deepcopy__(self, memo: dict[int, Any]) -> "LiveInputs":
        """Return those of the copy that is being made of the model, or of the model itself."""
        model = self.model()
        return self if model is None else LiveInputs(memo.get(id(model), model))

    def __reduce__(self) -> Any:
        """Pickle with the model."""
        return LiveInputs, (self.model(),)

    def _adapters(self) -> Any:
        model: Any = self.model()
        if model is None:
            raise ValueError("this module borrows weights of a model's inputs, and the model is gone: keep the model")
        return model.input_adapter.adapters


class OutputQueries(nn.Module):
    """All outputs: points by name to one set of queries."""

    def __init__(self, queries: Mapping[str, OutputQuery], join: Join) -> None:
        super().__init__()
        self.queries, self.join = nn.ModuleDict(queries), join
        self.channels = join.channels

    def forward(self, encoded: Encoded, points: Mapping[str, Points | None], names: Iterable[str] | None) -> Tokens:
        """Queries for these points of these outputs, in one width; None: all but those asking with an absent input."""
        if not isinstance(points, Mapping):
            raise ValueError(f"points of type {type(points).__name__}: give a dictionary of {', '.join(self.queries)}")
        check_names("output", points, self.queries)
        if names is None:
            names = [name for name, query in self.queries.items() if query.source in (None, *encoded.sources)]
        names = check_names("output", names, self.queries)
        own = {name: about("output", name, self._ask, name, encoded, points.get(name)) for name in names}
        check_batches("points", {"latents": encoded.latents.shape[0]} | {n: own[n].batch_size for n in names})
        return Tokens({name: self.join(name, segment) for name, segment in own.items()})

    def _ask(self, name: str, encoded: Encoded, points: Any) -> Any:
        asked = None if points is None else given_points(points, encoded.latents.device)
        return self.queries[name](encoded, asked)


class OutputAdapters(nn.Module):
    """All outputs: the decoder's rows, after each output's head, to raw arrays by name."""

    def __init__(self, adapters: Mapping[str, OutputAdapter]) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict(adapters)

    @property
    def heads(self) -> dict[str, nn.Module]:
        """The head of each output."""
        return {name: adapter.get_submodule("head") for name, adapter in self.adapters.items()}

    def share(self, queries: Tokens, share: Any) -> Tokens:
        """The queries of one of `world` processes; ValueError for an output whose rows depend on one another."""
        sound = isinstance(share, tuple | list) and len(share) == 2
        rank, world = share if sound else (-1, 0)
        if not (is_whole(rank) and is_whole(world)) or not 0 <= rank < world:
            raise ValueError(f"share = {share!r:.99} must be (rank, world), whole numbers with 0 <= rank < world")
        for name in queries.segments:
            if self.adapters[name].mixes_neighbours:
                raise ValueError(f"output {name!r} mixes neighbouring places: decode it whole, on one process")
        shares = {name: segment.share(rank, world) for name, segment in queries.segments.items()}
        return Tokens({name: segment for name, segment in shares.items() if segment.num_tokens})

    def forward(self, rows: Mapping[str, Tensor], queries: Tokens) -> dict[str, Any]:
        """Raw outputs."""
        found = {}
        for name, x in rows.items():
            asked = queries.segments[name]
            sound = is_in_range(asked, x.dtype)  # attention may make a number of a query that is none
            found[name] = self.adapters[name](x if sound is None else torch.where(sound, x, torch.nan), asked)
        return found


def check_new_name(what: str, name: str) -> None:
    """ValueError unless a part of a model can have this name."""
    known = isinstance(name, str) and name.isidentifier()
    # torch keeps parts by name as attributes of a module.
    if not known or hasattr(nn.ModuleDict(), name) or hasattr(nn.ParameterDict(), name):
        raise ValueError(f"{what}: name {name!r} must be letters, digits and underscores, and no word of torch's own")


def check_names(what: str, names: Iterable[str], known: Iterable[str]) -> list[str]:
    """The names, if all are known; else a ValueError with the nearest known one."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ValueError(f"{what}: names must come in a list, not as {names!r:.99}")
    names, known = list(names), dict.fromkeys(known)
    for name in names:
        if name not in known:
            listed = ", ".join(islice(known, MOST_LISTED)) + f", ... ({len(known)} in all)" * (len(known) > MOST_LISTED)
            raise ValueError(f"unknown {what} {name!r:.99}; there are {listed:.600}{near(str(name), known)}")
    return names


def _extent(value: Any) -> Extent | None:
    if not isinstance(value, Part):
        return None
    values = value.values["values"] if isinstance(value.values, Mapping) else value.values
    stop = tuple(at + n for at, n in zip(value.start, values.shape[1:], strict=False))
    return Extent(tuple(value.start), stop, value.size)
