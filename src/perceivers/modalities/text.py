"""Text, as UTF-8 bytes or through a tokenizer.

A raw batch is {"ids": [B, M], "mask": [B, M], "masked": [B, M]}, B texts of up to M tokens. `mask` is True where there
is a token, `masked` where a word was masked. An input may also be ids [B, M] alone. A prediction is logits
[B, M, vocabulary].
"""

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.core.checks import SIZE, check_ranges
from perceivers.core.interfaces import InputAdapter, OutputAdapter, OutputQuery
from perceivers.core.layers import plain_linear, sines, trained_vector
from perceivers.core.reading import Encoded
from perceivers.core.tokens import Segment
from perceivers.media.drawing import show_text
from perceivers.modalities.embeddings import TiedHead, bound_to_embedding, embedding
from perceivers.modalities.modality import Modality, Raw, input_of, mean_where, pad_sequences, rounded
from perceivers.modalities.places import NamedAxes, check_axis_names
from perceivers.modalities.points import Indices, Points, at_points
from perceivers.modalities.position_encodings import GridPositions, LearnedPositions
from perceivers.modalities.queries import InputQuery, LearnedQuery
from perceivers.modalities.raw import as_mask, check_index, check_keys
from perceivers.modalities.scalars import UNKNOWN, class_numbers
from perceivers.modalities.table_cells import Files
from perceivers.modalities.tokenizers import tokenizer_of, word_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torchmetrics import Metric

CHARACTERS = 64
"""Most characters for each of `length` tokens: a longer text is cut, or an error, before it is tokenized."""

MOST_CROPPED = 2**24
"""Most characters of a text that can be cropped, since cropping tokenizes the whole text."""


@dataclass(frozen=True)
class Text(Modality):
    """A text; a record holds a string."""

    length: int = 2048
    """Largest number of tokens; shorter texts are not padded to it."""
    tokenizer: str = "bytes"
    """"bytes", or the path of a JSON file of the tokenizers library."""
    vocab_size: int | None = None
    """Number of ids; None: that of the tokenizer. Fitted if None."""
    channels: int = 256
    """As an input: width of the embeddings and of the positions, which are added."""
    positions: Literal["learned"] | None = "learned"
    """As an input: trained positions; None: none."""
    axis_names: tuple[str, ...] = ()
    """Name of the axis along which tokens and queries then have coordinates, their number in the text from 0, for
    rotary positions; the trained tokens of a prefix have negative ones. With `of`, those of the input."""
    prefix: int = 0
    """As an input: number of trained tokens before the text, as BERT's CLS, which outputs can use as queries."""
    sines: bool = False
    """Sinusoidal initialisation of positions (as an output with `of`: of queries); False: at random (official)."""
    overflow: Literal["error", "truncate", "crop"] = "error"
    """Treatment of a longer text: an error; its beginning; in training a random part, else its beginning.

    A text of more than 64 characters a token counts as longer; one of more than 16 million cannot be cropped.
    """
    mask_words: float = 0.0
    """As an input, in training: probability that a word (between white space) is masked, all its tokens at once."""
    of: str | None = None
    """As an output: the text input that it restores, token by token; None: a new text, decoded from its start."""
    query_channels: int = 256
    """As an output: width of the trained queries, one for each of `length` positions."""
    tied: bool = True
    """As an output with `of`: logits from the input's embeddings and a trained bias; otherwise from a linear map."""
    unmasked_loss_weight: float = 0.0
    """As an output with `of`: weight in the loss of a token that was not masked; a masked token has weight 1."""
    mask_queries: bool = True
    """As an output with `of`: mask the queries where the input has no token; False as in transformers."""
    read_fields: ClassVar[tuple[str, ...]] = ()
    preprocess_needs_fit: ClassVar[bool] = False
    kind: Literal["text"] = "text"
    """Name in schema files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, {"length": SIZE})
        check_axis_names(self.axis_names, 1)
        if self.sines and self.positions is None:
            raise ValueError("sines: true has no effect without positions; leave it out")
        if self.prefix < 0:
            raise ValueError(f"prefix = {self.prefix} must be a number of tokens, 0 or more")
        for name in ("mask_words", "unmasked_loss_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be between 0 and 1")

    @property
    def num_ids(self) -> int:
        """Number of ids."""
        return self.vocab_size or tokenizer_of(self.tokenizer).vocab_size

    def read(self, cell: Any, files: Files) -> str:
        """Return the text; a number as text."""
        return str(cell)

    @property
    def is_fitted(self) -> bool:
        """True if the number of ids is known."""
        return self.vocab_size is not None

    def summary(self, value: Any) -> str:
        """Return an empty text: `fit` depends on the tokenizer alone."""
        return ""

    def fit(self, values: Iterable[Any]) -> "Text":
        """Store the tokenizer's number of ids, so that the model can be built without the tokenizer's file."""
        return replace(self, vocab_size=self.num_ids)

    def preprocess(self, value: Any, rng: np.random.Generator, training: bool) -> dict[str, Any]:
        """Return the ids after masking, where they are masked, the first token kept, and the number of characters.

        With `mask_at_eval`, words are masked outside training too. A masked token always becomes MASK (paper F.3).
        """
        value = self._within(value)
        ids, characters = self._tokens(value)
        part = self._part(len(ids), rng, training)
        ids, masked = ids[part], np.zeros(len(ids[part]), bool)
        if self.mask_words and (training or self.mask_at_eval):
            words = word_numbers(value, characters[part])
            # One draw for each word. White space has number -1, which indexes the appended False: it is never masked.
            masked = np.append(rng.random(words.max(initial=-1) + 1) < self.mask_words, False)[words]
            ids = np.where(masked, tokenizer_of(self.tokenizer).mask_id, ids)
        return {"ids": ids, "masked": masked, "start": part.start, "characters": len(value)}

    def target(self, value: Any, rng: np.random.Generator, prepared: Mapping[str, Any], training: bool) -> Any:
        """Return the true ids; with `of`, those of the input's part of the text, and `masked` (None without the input).

        Without `of`, one padding token follows if `length` leaves room: the model predicts it as the end of the text.
        """
        # A new text, with its end.
        if self.of is None:
            ids = replace(self, mask_words=0.0).preprocess(value, rng, training=False)["ids"]
            ids = np.append(ids, tokenizer_of(self.tokenizer).pad_id)[: self.length]
            return {"ids": ids, "masked": np.zeros(len(ids), bool), "start": 0}
        # The input's text: the same number of characters and the same tokens, unmasked.
        source = prepared.get(self.of)
        if source is None:
            return None
        value = _text(value)[: max(source["characters"], CHARACTERS * self.length)]
        ids = self._tokens(value)[0][source["start"] :][: len(source["ids"])]
        if len(ids) != len(source["ids"]):
            raise ValueError(
                f"a text with {len(ids)} tokens where its input {self.of!r} has {len(source['ids'])}: with of = "
                f"{self.of!r} it restores that text token by token; give it the same key, or leave `of` out"
            )
        return {**source, "ids": ids}

    def collate(self, values: Sequence[Any]) -> Raw:
        """Return a batch, padded to the longest text."""
        ids, mask = pad_sequences([None if value is None else value["ids"] for value in values])
        masked, _ = pad_sequences([None if value is None else value["masked"] for value in values])
        return {"ids": ids.masked_fill(~mask, tokenizer_of(self.tokenizer).pad_id), "mask": mask, "masked": masked}

    def to_row(self, sample: Raw) -> dict[str, Any]:
        """Return the most probable text, up to its first padding token."""
        return {"": tokenizer_of(self.tokenizer).decode(self._written(sample))}

    def attribution(self, whole: Raw, without: Raw) -> dict[str, Any]:
        """Return the change of the log-probability of the text that is predicted from all inputs."""
        ids = whole.new_tensor(self._written(whole), dtype=torch.long)
        change = (whole.float().log_softmax(dim=-1) - without.float().log_softmax(dim=-1))[: len(ids)]
        return {"": rounded(change.gather(1, ids[:, None]).sum())}

    def dummy_input(self, batch_size: int, device: torch.device) -> Raw:
        """Return `length` tokens of id 0."""
        return torch.zeros(batch_size, self.length, dtype=torch.long, device=device)

    def build_input(self) -> "TextInput":
        """Build the adapter with a token for each id: its embedding plus its position."""
        return TextInput(self)

    def build_query(self, inputs: Mapping[str, InputAdapter]) -> OutputQuery:
        """Build a trained query for each position; with `of`, as many are used as the input has tokens."""
        if self.of is None:
            return LearnedQuery(self.length, self.query_channels, NamedAxes(self.axis_names))
        self._source(inputs)
        size = (self.length, self.query_channels)
        table = sines(self.length, *size) if self.sines else trained_vector(*size)
        return TextQuery(self.of, table, self.mask_queries)

    def build_output(self, channels: int, inputs: Mapping[str, InputAdapter]) -> "TextOutput":
        """Build the adapter from decoded queries to logits."""
        if self.of is None or not self.tied:
            return TextOutput(plain_linear(channels, self.num_ids))
        width = self._source(inputs).channels
        if width != channels:
            raise ValueError(
                f"tied logits need a decoder as wide as the embeddings of input {self.of!r}, {width}, not "
                f"{channels}: set decoder.query_channels = {width} (under decoder.channel_alignment = pad: "
                f"query_channels = {width} of this output), or tied = false"
            )
        return TextOutput(TiedHead(self.of, (self.num_ids, width)), self.of)

    @property
    def target_parts(self) -> tuple[str, ...]:
        """Names of the arrays of a raw target."""
        return ("ids", "mask", "masked")

    def points(self, target: Raw) -> Points | None:
        """Return the first positions, as many as the longest target has; with `of`, None for the input's positions."""
        ids = target["ids"]
        return Indices(torch.arange(ids.shape[1], device=ids.device)) if self.of is None else None

    def loss(self, prediction: Raw, target: Raw) -> Tensor:
        """Return the mean cross entropy of masked tokens, others weighted; of all tokens, if none is masked."""
        target, shape = _known(target, prediction.shape[-1]), target["ids"].shape
        if len(shape) != 2 or shape[0] != prediction.shape[0] or shape[1] > prediction.shape[1]:
            raise ValueError(f"ids of shape {tuple(shape)}, expected {tuple(prediction.shape[:2])} at most")
        logits = rearrange(_at_target(prediction, target), "b m v -> b v m")
        losses = F.cross_entropy(logits, target["ids"], reduction="none")
        if not self.unmasked_loss_weight:
            return mean_where(losses, _to_predict(target))
        weights = self._loss_weights(target).to(losses.dtype)
        return (losses * weights).sum() / weights.sum().clamp(min=1)

    def num_terms(self, target: Raw) -> Tensor:
        """Return the sum of the weights that the tokens have in the loss."""
        target = _known(target, self.num_ids)
        return self._loss_weights(target).sum() if self.unmasked_loss_weight else _to_predict(target).sum()

    def metrics(self) -> "dict[str, Metric]":
        """Return accuracy and bits per token: the mean of -log2(probability of the true token)."""
        from torchmetrics import MeanMetric
        from torchmetrics.classification import MulticlassAccuracy
        from torchmetrics.wrappers import LambdaInputTransformer

        accuracy = MulticlassAccuracy(num_classes=self.num_ids, average="micro")
        return {
            "accuracy": LambdaInputTransformer(accuracy, lambda tokens: tokens[:, 0].long()),
            "bits_per_token": LambdaInputTransformer(MeanMetric(), lambda tokens: tokens[:, 1], torch.ones_like),
        }

    def metric_inputs(self, prediction: Raw, target: Raw) -> tuple[Tensor, Tensor]:
        """Return [n, 2] the most probable id and the bits of the true id, and [n] true ids, of tokens to predict."""
        target = _known(target, prediction.shape[-1])
        to_predict = _to_predict(target)
        logits, ids = _at_target(prediction, target)[to_predict].float(), target["ids"][to_predict]
        bits = F.cross_entropy(logits, ids, reduction="none") / math.log(2)
        return torch.stack([logits.argmax(dim=-1), bits], dim=-1), ids

    def picture(self, axes: "Axes", sample: Raw) -> None:
        """Draw the text, masked words in brackets; of logits, the most probable text."""
        show_text(axes, textwrap.fill(self.marked(sample), 60))

    def marked(self, sample: Raw) -> str:
        """Return the text of a sample, masked words in brackets; of logits, the most probable text."""
        if isinstance(sample, Mapping):
            ids, masked = sample["ids"][sample["mask"]], sample["masked"][sample["mask"]]
        else:
            ids = sample.argmax(dim=-1) if sample.ndim == 2 else sample
            masked = torch.zeros_like(ids, dtype=torch.bool)
        pieces = []
        for is_masked, run in groupby(zip(masked.tolist(), ids.tolist(), strict=True), key=itemgetter(0)):
            text = tokenizer_of(self.tokenizer).decode([number for _, number in run])
            pieces.append(f"[{text or '...'}]" if is_masked else text)
        return "".join(pieces)

    def for_plot(self, prediction: Raw, target: Raw) -> Raw:
        """Return the target with the most probable ids in place of the true ones."""
        return {**target, "ids": prediction[: len(target["ids"])].argmax(dim=-1)}

    def _loss_weights(self, target: Raw) -> Float[Tensor, "b m"]:
        return torch.where(_to_predict(target), 1.0, self.unmasked_loss_weight * target["mask"])

    def _within(self, value: Any) -> str:
        """Return the part of a text that is tokenized; ValueError for a text that is far too long."""
        value, most = _text(value), CHARACTERS * self.length
        if self.overflow == "truncate" or len(value) <= most:
            return value[:most]
        if self.overflow == "crop" and len(value) <= MOST_CROPPED:
            return value
        if self.overflow == "crop":
            raise ValueError(f"a text of {len(value):,} characters is too long to crop: split it, or raise length")
        raise ValueError(
            f"a text of {len(value):,} characters is longer than length = {self.length} tokens: raise length, "
            "or set overflow = truncate or overflow = crop"
        )

    def _tokens(self, value: str) -> tuple[np.ndarray, np.ndarray]:
        ids, characters = tokenizer_of(self.tokenizer).tokens(value)
        if ids.max(initial=0) >= self.num_ids:
            raise ValueError(f"the tokenizer gave id {ids.max()}, which vocab_size = {self.num_ids} does not reach")
        return ids, characters

    def _part(self, count: int, rng: np.random.Generator, training: bool) -> slice:
        """Return which of `count` tokens are kept."""
        beyond = max(count - self.length, 0)
        if beyond and self.overflow == "error":
            raise ValueError(
                f"a text of {count} tokens is longer than length = {self.length}: raise length, "
                "or set overflow = truncate or overflow = crop"
            )
        start = int(rng.integers(beyond + 1)) if beyond and training and self.overflow == "crop" else 0
        return slice(start, start + self.length)

    def _source(self, inputs: Mapping[str, InputAdapter]) -> "TextInput":
        source = input_of(inputs, str(self.of))
        if not isinstance(source, TextInput):
            raise ValueError(f"of = {self.of!r} must name a text input; that one is read by {type(source).__name__}")
        for name in ("tokenizer", "num_ids", "length"):
            expected, value = getattr(source.spec, name), getattr(self, name)
            if value != expected:
                raise ValueError(f"{name} = {value!r} must be that of the input it restores, {self.of!r}: {expected!r}")
        names = source.spec.axis_names
        if self.axis_names and list(self.axis_names) != list(names):
            raise ValueError(
                f"axis_names = {self.axis_names} must be those of input {self.of!r}, {names}: leave it out"
            )
        if source.spec.prefix:
            raise ValueError(f"input {self.of!r} has prefix = {source.spec.prefix}: only a text alone can be restored")
        return source

    def _written(self, logits: Tensor) -> list[int]:
        pad = tokenizer_of(self.tokenizer).pad_id
        return list(takewhile(lambda number: number != pad, logits.argmax(dim=-1).tolist()))

    @classmethod
    def example(cls, rng: np.random.Generator) -> "tuple[Text, list[Any]]":
        """Return ragged texts with characters of several bytes; one is missing."""
        return cls(length=23, channels=11, query_channels=7, mask_words=0.5), ["Grüße aus Köln", "π ≈ 3", None]


class TextInput(InputAdapter):
    """Adapter with a token for each id: its embedding plus a trained position; the prefix's tokens come first."""

    def __init__(self, spec: Text) -> None:
        super().__init__()
        self.spec, self.channels, self.num_ids = spec, spec.channels, spec.num_ids
        self.embedding = embedding(self.num_ids, spec.channels)
        self.positions = None if spec.positions is None else LearnedPositions((spec.length,), spec.channels)
        self.prefix = trained_vector(spec.prefix, spec.channels) if spec.prefix else None
        if spec.sines and self.positions is not None:
            self.positions.table = sines(spec.length, spec.length, spec.channels)

    def forward(self, raw: Raw) -> Segment:
        """Return the tokens in the order of the text; without a mask all of them are valid, padding too."""
        # Unpack and check: ids [B, M], mask [B, M] or None.
        raw = raw if isinstance(raw, Mapping) else {"ids": raw}
        check_keys(raw, ["ids"], ["mask", "masked"])
        ids, mask = raw["ids"], raw.get("mask")
        if ids.ndim != 2 or ids.is_floating_point() or ids.dtype == torch.bool or not ids.shape[1]:
            raise ValueError(f"ids of shape {tuple(ids.shape)} and type {ids.dtype}, expected whole numbers [B, M]")
        if mask is not None and mask.ndim != 2:
            raise ValueError(f"mask of shape {tuple(mask.shape)}, expected [B, M]")
        ids = ids if mask is None else torch.where(mask, ids, torch.zeros_like(ids))  # padding may be any number
        check_index(ids, self.num_ids, "id", "of the vocabulary")
        count = ids.shape[1]
        if count > self.spec.length:
            raise ValueError(f"{count} tokens are more than length = {self.spec.length}: give fewer, or raise length")
        # Embeddings and positions; the tokens of the prefix come first and have no positions.
        content = self.embedding(ids.long())
        positions, prefix = None, self.spec.prefix
        if self.positions is not None:
            positions = self.positions.on_grid(GridPositions((count,), (self.spec.length,), device=ids.device))
            positions = F.pad(positions, (0, 0, prefix, 0)) if prefix else positions
        coordinates = NamedAxes(self.spec.axis_names).on_grid((prefix + count,), (-prefix,), ids.device)
        if self.prefix is not None:
            content = torch.cat([self.prefix.expand(len(content), -1, -1), content], dim=1)
            mask = None if mask is None else torch.cat([_any(mask).expand(-1, len(self.prefix)), mask], dim=1)
        return Segment(content, positions, positions_added=True, mask=mask, coordinates=coordinates)


class TextQuery(OutputQuery):
    """A trained query for each token of a text input, by its position in the text."""

    def __init__(self, source: str, table: nn.Parameter, masked: bool = True) -> None:
        super().__init__()
        self.source, self.channels, self.masked = source, table.shape[1], masked
        self.table = table
        self.source_query = InputQuery(source, self.channels)  # the input's tokens: their number and their mask

    def forward(self, encoded: Encoded, points: Points | None) -> Segment:
        """Return as many queries as the input has tokens, or those at Indices, with the input's mask if `masked`."""
        tokens = self.source_query(encoded, None)
        mask = tokens.mask if self.masked else None
        content = self.table[None, : tokens.num_tokens]
        return at_points(Segment(content, mask=mask, coordinates=tokens.coordinates), points)


class TextOutput(OutputAdapter):
    """Adapter from decoded queries to logits."""

    def __init__(self, head: nn.Module, tied_to: str | None = None) -> None:
        super().__init__()
        self.head, self.tied_to = head, tied_to

    def bound_head(self, inputs: Any) -> Callable[[Tensor], Tensor]:
        """Return the head, with the input's embedding where logits are tied."""
        return self.head if self.tied_to is None else bound_to_embedding(self.head, self.tied_to, inputs)

    def forward(self, x: Float[Tensor, "b o v"], queries: Segment) -> Float[Tensor, "b o v"]:
        """Return the logits of each position as the head computed them."""
        return x


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a text must be a string, not {type(value).__name__}")
    return value


def _any(mask: Bool[Tensor, "b m"]) -> Bool[Tensor, "b 1"]:
    return mask.any(dim=1, keepdim=True)


def _known(target: Raw, count: int) -> dict[str, Tensor]:
    """Return a target in which unknown ids (-1, -100) are padding; ids of padding may be any number."""
    ids, known = class_numbers(torch.where(target["mask"], target["ids"], UNKNOWN), count)
    return {"ids": ids, "mask": known, "masked": as_mask(target["masked"])}


def _to_predict(target: Mapping[str, Tensor]) -> Bool[Tensor, "b m"]:
    """Return True for the masked tokens; for all tokens, if none in the batch is masked."""
    masked = target["masked"] & target["mask"]
    return torch.where(masked.any(), masked, target["mask"])


def _at_target(prediction: Float[Tensor, "b o v"], target: Mapping[str, Tensor]) -> Float[Tensor, "b m v"]:
    # There are more queries than tokens if the longest input of a batch belongs to a sample without a target.
    return prediction[:, : target["ids"].shape[1]]
