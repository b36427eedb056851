"""Prediction of the masked tokens of a text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from perceivers.core.arguments import check_positive
from perceivers.core.perceiver import PerceiverIO
from perceivers.modalities import Text
from perceivers.modalities.points import Indices
from perceivers.modalities.tokenizers import Tokenizer, tokenizer_of
from perceivers.schema import find_modality
from perceivers.training.metrics import check_guesses, inference

MARK = "[MASK]"
"""Mark of one unknown token in a text."""


@dataclass(frozen=True)
class Filled:
    """A run of masked tokens, with candidates for its text."""

    start: int
    """Index of the first token (byte)."""
    stop: int
    """Index after the last token."""
    candidates: list[tuple[str, float]]
    """Texts with their probabilities, most probable first; the tokens of a run are predicted independently."""


def fill_mask(
    model: PerceiverIO, text: str, ranges: Sequence[tuple[int, int]] = (), num_candidates: int = 5
) -> list[Filled]:
    """Predict the text of each [MASK] in `text` (one token each) and of `ranges` of tokens (start, stop)."""
    check_positive("num_candidates", num_candidates)
    name, spec = find_modality(model.schema.inputs, Text)
    output, _ = find_modality(model.schema.outputs, Text)
    ids, masked = masked_ids(tokenizer_of(spec.tokenizer), text, ranges)
    if not masked.any():
        raise ValueError("nothing is masked: write [MASK] in the text, or give ranges of bytes")
    # Decode only the masked tokens.
    device = next(model.parameters()).device
    points = Indices(torch.from_numpy(np.flatnonzero(masked)).to(device))
    raw = torch.from_numpy(ids)[None].to(device)
    with inference(model):
        logits = model({name: {"ids": raw, "mask": torch.ones_like(raw, dtype=torch.bool)}}, {output: points})[output]
    check_guesses(output, logits, what="text")
    probabilities = logits[0].double().softmax(dim=-1).cpu()
    # Split the probabilities into runs, and keep the best texts of each run.
    filled, offset = [], 0
    for start, stop in runs(masked):
        part = probabilities[offset : offset + stop - start]
        offset += stop - start
        best = best_sequences(part, num_candidates)
        candidates = [(tokenizer_of(spec.tokenizer).decode(tokens), p) for tokens, p in best]
        filled.append(Filled(start, stop, candidates))
    return filled


def masked_ids(
    tokenizer: Tokenizer, text: str, ranges: Sequence[tuple[int, int]]
) -> tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Return the token ids of a text, with the mask id at each [MASK] and in `ranges`, and the mask itself."""
    parts = [tokenizer.encode(part) for part in text.split(MARK)]
    pieces = [parts[0]] + [np.concatenate([[tokenizer.mask_id], part]) for part in parts[1:]]
    ids = np.concatenate(pieces).astype(np.int64)
    masked = np.zeros(len(ids), bool)
    masked[np.cumsum([len(part) for part in pieces[:-1]], dtype=int)] = True
    for start, stop in ranges:
        if not 0 <= start < stop <= len(ids):
            raise ValueError(f"range {start}:{stop} must rise within the {len(ids)} tokens of the text")
        masked[start:stop] = True
    return np.where(masked, tokenizer.mask_id, ids), masked


def runs(masked: Bool[np.ndarray, " n"]) -> list[tuple[int, int]]:
    """Return start and stop of each unbroken run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], masked.astype(np.int8), [0]])))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def best_sequences(probabilities: Float[Tensor, "n v"], count: int) -> list[tuple[list[int], float]]:
    """Return the most probable sequences of independent tokens, with their probabilities."""
    best: list[tuple[list[int], float]] = [([], 1.0)]
    for token_probabilities in probabilities:
        top = token_probabilities.topk(min(count, len(token_probabilities)))
        # Extend each of the best prefixes by each likely token; no better sequence can be missed.
        grown = [
            ([*tokens, int(token)], probability * float(p))
            for tokens, probability in best
            for token, p in zip(top.indices, top.values, strict=True)
        ]
        best = sorted(grown, key=lambda pair: -pair[1])[:count]
    return best
