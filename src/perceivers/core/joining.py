"""Several named inputs as one set of tokens, several named outputs as one set of queries, and back."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from perceivers.core.initialisers import plain_linear, trained_vector
from perceivers.core.interfaces import InputAdapter, OutputAdapter, OutputQuery, Part, Points, SchemaLike
from perceivers.core.linear_map import dtype_of, is_linear_map, linear_map
from perceivers.core.reading import Encoded
from perceivers.core.tokens import Segment, Tokens

JoinRule = Literal["pad", "project"]

LONGEST_HINT, MOST_HINTS = 100, 2000
"""Characters of a name, and number of names, that a wrong one is compared with: each takes quadratic time."""

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
            tokens = projection(segment.dense(dtype_of(projection)))
            return Segment(content=tokens, mask=segment.mask, grid=segment.grid)
        return replace(segment, constant=self.paddings[name]) if name in self.paddings else segment


def mask_probs(schema: SchemaLike) -> dict[str, tuple[float, bool]]:
    """Of each input that has a mask token: how probable it is, and whether in evaluation too."""
    return {n: (spec.mask_prob, spec.mask_at_eval) for n, spec in schema.inputs.items() if spec.mask_prob is not None}


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
        self, raw: Mapping[str, Any] | Tensor, missing: Iterable[str] | None = None
    ) -> tuple[Tokens, dict[str, Segment]]:
        """All tokens in one width; and each input's own, before they were joined and hidden.

        An input that is not given (absent or None) is left out; one that has a mask token is hidden instead, also in
        single samples that lack it. With `missing`, of those not given only these are hidden.
        """
        given = self._by_name(raw)
        own = {name: adapter(given[name]) for name, adapter in self.adapters.items() if name in given}
        if not own and not missing:
            raise ValueError(f"no input given: the model reads {', '.join(self.adapters)}")
        joined = {}
        for name in self.adapters:
            hidden = missing is None or name in missing
            segment = own[name] if name in own else self._absent(name) if hidden else None
            if segment is not None:
                joined[name] = self._hide(name, self.join(name, segment), absent=name not in own)
        return Tokens(joined), own

    def _by_name(self, raw: Mapping[str, Any] | Tensor) -> dict[str, Any]:
        if isinstance(raw, Tensor):
            if len(self.adapters) != 1:
                raise ValueError(f"several inputs: give a dictionary of {', '.join(self.adapters)}")
            return {next(iter(self.adapters)): raw}
        for name in check_names("input", raw, self.adapters):
            if isinstance(raw[name], Part) and not self.adapters[name].reads_parts:
                raise ValueError(f"input {name!r} is no grid of independent tokens: give it whole, not as a Part")
        return {name: value for name, value in raw.items() if value is not None}

    def _absent(self, name: str) -> Segment | None:
        adapter = self.adapters[name]
        assert isinstance(adapter, InputAdapter)
        return adapter.absent(self.mask_tokens[name].device) if name in self.mask_probs else None

    def _hide(self, name: str, segment: Segment, absent: bool) -> Segment:
        if name not in self.mask_probs or segment.content is None:
            return segment
        prob, at_eval = self.mask_probs[name]
        prob = 1.0 if absent else prob * (self.training or at_eval)
        mask, shape = segment.mask, segment.content.shape[:2]
        # Bernoulli draws are made even for certainties: uniform numbers are never below 0 and always below 1.
        hidden = torch.rand(shape, device=segment.content.device) < prob
        fixed = self._absent(name)
        if mask is not None and fixed is not None and fixed.num_tokens == shape[1]:
            lacking = ~mask.any(dim=1, keepdim=True)
            hidden, mask = hidden | lacking, mask | lacking
        return replace(segment, mask=mask, stand_in=self.mask_tokens[name], hidden=hidden)


class OutputQueries(nn.Module):
    """All outputs: points by name to one set of queries."""

    def __init__(self, queries: Mapping[str, OutputQuery], join: Join) -> None:
        super().__init__()
        self.queries, self.join = nn.ModuleDict(queries), join
        self.channels = join.channels

    def forward(self, encoded: Encoded, points: Mapping[str, Points], names: Iterable[str] | None) -> Tokens:
        """Queries for these points of these outputs, in one width; None: all but those asking with an absent input."""
        check_names("output", points, self.queries)
        if names is None:
            names = [name for name, query in self.queries.items() if query.source in (None, *encoded.sources)]
        names = check_names("output", names, self.queries)
        return Tokens({name: self.join(name, self.queries[name](encoded, points.get(name))) for name in names})


class OutputAdapters(nn.Module):
    """All outputs: the decoder's rows, after each output's head, to raw arrays by name."""

    def __init__(self, adapters: Mapping[str, OutputAdapter]) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict(adapters)

    @property
    def heads(self) -> dict[str, nn.Module]:
        """The head of each output."""
        return {name: adapter.get_submodule("head") for name, adapter in self.adapters.items()}

    def share(self, queries: Tokens, rank: int, world: int) -> Tokens:
        """The queries of one of `world` processes; ValueError for an output whose rows depend on one another."""
        for name in queries.segments:
            if self.adapters[name].mixes_neighbours:
                raise ValueError(f"output {name!r} mixes neighbouring places: decode it whole, on one process")
        shares = {name: segment.share(rank, world) for name, segment in queries.segments.items()}
        return Tokens({name: segment for name, segment in shares.items() if segment.num_tokens})

    def forward(self, rows: Mapping[str, Tensor], queries: Tokens) -> dict[str, Any]:
        """Raw outputs."""
        return {name: self.adapters[name](x, queries.segments[name]) for name, x in rows.items()}


def check_new_name(what: str, name: str) -> None:
    """ValueError unless a part of a model can have this name."""
    # torch keeps parts by name as attributes of a module.
    if not name.isidentifier() or hasattr(nn.ModuleDict(), name) or hasattr(nn.ParameterDict(), name):
        raise ValueError(f"{what}: name {name!r} must be letters, digits and underscores, and no word of torch's own")


def check_names(what: str, names: Iterable[str], known: Iterable[str]) -> list[str]:
    """The names, if all are known; else a ValueError with the nearest known one."""
    names, known = list(names), dict.fromkeys(known)
    for name in names:
        if name not in known:
            listed = ", ".join(islice(known, MOST_LISTED)) + f", ... ({len(known)} in all)" * (len(known) > MOST_LISTED)
            raise ValueError(f"unknown {what} {name!r:.99}; there are {listed:.600}{hint(str(name), known)}")
    return names


def hint(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the known name that is nearest to a wrong one, or nothing."""
    short = [other for other in known if len(other) <= LONGEST_HINT][:MOST_HINTS]
    near = difflib.get_close_matches(name, short, n=1) if len(name) <= LONGEST_HINT else []
    return f"; did you mean {near[0]!r}?" if near else ""
