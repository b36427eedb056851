"""The losses of a batch, and the number of elements that each is a mean over."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves

from perceivers.core.bottleneck import KL
from perceivers.core.layers import without_autocast
from perceivers.core.perceiver import PerceiverIO
from perceivers.schema import Batch, Schema
from perceivers.training.masking import Masking
from perceivers.training.streams import interleaved, predict_in_turn, windows


class Objective(nn.Module):
    """A model and the losses of its schema as one module, so that DDP, FSDP and torch.compile wrap a whole step.

    Learned loss weights (Kendall, Gal and Cipolla 2018, arXiv:1705.07115): a loss L with the fixed weight w becomes
    w (exp(-s) L + s). The log-variance s of each output is learned and starts at 0; its optimum is exp(s) = L.
    A loss that is a likelihood already is left unchanged, and so is the loss of the bottleneck.
    """

    def __init__(self, model: PerceiverIO, weights: Literal["fixed", "learned"] = "fixed", unroll: int = 1) -> None:
        super().__init__()
        self.unroll = unroll
        bottleneck = getattr(model.trunk, "bottleneck", None)
        self.model, self.bottleneck = model, None if bottleneck is None else bottleneck.config
        outputs = self.schema.outputs
        self.weighed = [name for name, spec in outputs.items() if weights == "learned" and not spec.is_likelihood]
        if weights == "learned" and len(outputs) < 2:
            warnings.warn("weights = learned has no effect: there is one output alone", stacklevel=3)
        self.log_variances = nn.Parameter(torch.zeros(len(self.weighed))) if self.weighed else None

    @property
    def schema(self) -> Schema:
        """The schema of the model."""
        return cast(Schema, self.model.schema)

    @property
    def names(self) -> list[str]:
        """Names of the losses: the outputs, then "kl" if the model has a bottleneck."""
        return [*self.schema.outputs, *([] if self.bottleneck is None else [KL])]

    @property
    def noise_shape(self) -> tuple[int, int] | None:
        """Shape [N, z] of the noise of a sample in training; None: the model draws no sample of a bottleneck."""
        if self.bottleneck is None or not self.bottleneck.sample:
            return None
        return self.model.config.latents.num_latents, self.bottleneck.channels

    def warmup(self, step: int) -> dict[str, float]:
        """Return the factor by which a step (from 0) scales the loss of the bottleneck, by name; empty: by none."""
        if self.bottleneck is None or step >= self.bottleneck.warmup_steps:
            return {}
        return {KL: step / self.bottleneck.warmup_steps}

    def train(self, mode: bool = True) -> "Objective":
        """Set training or evaluation mode; frozen batch norms stay in evaluation mode and keep their statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _NormBase) and not any(p.requires_grad for p in module.parameters()):
                module.eval()
        return self

    def forward(self, batch: Batch, masking: Masking | None = None) -> dict[str, Tensor]:
        """Return the weighted loss of each output that has targets, in float32 at least; one loss of 0 if none has.

        With a bottleneck, its loss "kl" comes last, under its full weight (see `warmup`).
        """
        if self.bottleneck is None and self.schema.stream is None:
            return self._losses(self.predict(batch, masking), batch["targets"])
        return self.carried(batch, masking, number=self.unroll)[0]

    def carried(
        self, batch: Batch, masking: Masking | None = None, latents: Tensor | None = None, number: int = 1
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the losses over `number` windows of each stream, begun with these latents, and the latents after them.

        A batch holds the windows of its first stream, then those of the second one; None: the model's own latents.
        """
        found, divergences = [], []
        for window in windows(batch, number):
            noise = window["noise"]["bottleneck"] if self.training and "noise" in window else None
            encoded = self.model.encode(window["inputs"], masking=cast(Any, masking), latents=latents, noise=noise)
            found.append(_precise(self.model.decode(encoded, self.schema.points(window["targets"]))))
            latents = encoded.latents
            if self.bottleneck is not None:
                divergences.append(encoded.posterior.kl(self.bottleneck.free_bits).mean())
        losses = self._losses(found[0] if number == 1 else interleaved(found), batch["targets"])
        if self.bottleneck is not None:
            with without_autocast(next(self.parameters()).device):
                losses[KL] = self.bottleneck.weight * torch.stack(divergences).mean()
        return losses, cast(Tensor, latents)

    def _losses(self, predictions: Mapping[str, Any], targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the weighted loss of each output that has targets; one loss of 0 if none has."""
        with without_autocast(next(self.parameters()).device):
            losses = self.schema.losses(predictions, targets)
            if self.log_variances is not None:
                for name, variance in zip(self.weighed, self.log_variances, strict=True):
                    if name in losses:
                        losses[name] = (-variance).exp() * losses[name] + self.schema.outputs[name].weight * variance
            if not losses:  # other processes may have targets and wait for this one's gradients, which are 0
                used = [*tree_leaves(predictions), *self.extra_parameters.values()]
                losses = {next(iter(self.schema.outputs)): 0.0 * torch.stack([x.sum() for x in used]).sum()}
        return losses

    @property
    def extra_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters that are learned in addition to the model: the log-variances of the losses, by name."""
        return {} if self.log_variances is None else {"log_variances": self.log_variances}

    def weights(self) -> dict[str, float]:
        """Return the learned weight exp(-s) of each loss, by output; the fixed weight comes on top."""
        if self.log_variances is None:
            return {}
        variances = self.log_variances.detach()
        variances = variances.full_tensor() if isinstance(variances, DTensor) else variances
        return dict(zip(self.weighed, (-variances).exp().tolist(), strict=True))

    def unweighed(self, losses: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
        """Return the losses under their fixed weights alone: w L, given w (exp(-s) L + s) and the weights exp(-s)."""
        fixed = {name: self.schema.outputs[name].weight for name in weights}
        return {
            name: (loss + fixed[name] * math.log(weights[name])) / weights[name] if name in weights else loss
            for name, loss in losses.items()
        }

    def predict(self, batch: Batch, masking: Masking | None = None, streams: Sequence[str] = ()) -> dict[str, Any]:
        """Return the predictions at the points of the batch's targets; outside training, `masking` masks tokens.

        `streams`: the stream of each sample, in a model that carries states on.
        """
        if streams:
            return _precise(predict_in_turn(self.model, batch, streams, masking=masking))
        return _precise(self.model(batch["inputs"], self.schema.points(batch["targets"]), masking=masking))


def counts(learner: Any, batch: Batch, device: torch.device) -> Tensor:
    """Return the number of elements that each loss is a mean over; 0 for an output without targets.

    The loss of the bottleneck is a mean over the samples. `learner` is an Objective, perhaps wrapped by Fabric.
    """
    outputs = learner.schema.outputs
    known = {name: outputs[name].num_terms(target) for name, target in batch["targets"].items()}
    if learner.bottleneck is not None:
        known[KL] = torch.tensor(num_samples(batch))
    return torch.stack(
        [known[name].to(device) if name in known else torch.tensor(0, device=device) for name in learner.names]
    )


def num_samples(batch: Batch) -> int:
    """Return the number of samples of a batch."""
    return next((len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)), 0)


def parts(batch: Batch, number: int) -> Sequence[Batch]:
    """Split a batch along its samples into `number` parts of equal size."""
    return [_part(batch, part, number) for part in range(number)]


def _part(value: Any, part: int, number: int) -> Any:
    if isinstance(value, Mapping):
        return {key: _part(item, part, number) for key, item in value.items()}
    return value.tensor_split(number)[part]


def _precise(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _precise(item) for key, item in value.items()}
    if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16):
        return value.float()
    return value
