"""The paper's optimisers and learning-rate schedules (DeepMind, `perceiver/train/utils.py`)."""

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.optim.optimizer import ParamsT

OptimiserKind = Literal["lamb", "adamw", "muon"]
ScheduleKind = Literal["constant", "constant_cosine", "cosine", "steps"]
Betas = tuple[float, float]

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)
_LAYERS = (nn.Linear, _ConvNd, nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention, nn.RNNBase)


@dataclass(frozen=True)
class OptimiserConfig:
    """The optimiser: update rule, learning rate, weight decay, gradient clipping."""

    kind: OptimiserKind = "lamb"
    """Update rule: "lamb" (the paper's), "adamw", or "muon" for inner matrices with AdamW for the rest."""
    learning_rate: float = 1e-3
    """Peak learning rate, which the schedule scales."""
    base_batch_size: int | None = None
    """Batch size that `learning_rate` is meant for; it scales linearly with the actual one. None: no scaling."""
    weight_decay: float = 0.01
    """Decoupled weight decay; norms and biases of layers are exempt."""
    betas: Betas = (0.9, 0.999)
    """Decay rates of the running means of the gradient and of its square."""
    epsilon: float | None = None
    """Term added to the denominator; None: the official 1e-6 for lamb, 1e-8 for AdamW."""
    max_norm: float | None = 10.0
    """Global gradient norm to which the training loop clips before the step; None: no clipping."""
    decay_positions: bool = True
    """Apply weight decay to learned positions, latents and queries too."""

    def __post_init__(self) -> None:
        _check(self.kind in get_args(OptimiserKind), f"kind={self.kind!r} must be one of {get_args(OptimiserKind)}")
        _check_rates(self.learning_rate, self.weight_decay, self.betas, _epsilon(self))
        _check(
            self.base_batch_size is None or self.base_batch_size > 0,
            f"base_batch_size={self.base_batch_size} must be above 0",
        )
        _check(self.max_norm is None or self.max_norm > 0, f"max_norm={self.max_norm} must be above 0, or None")


@dataclass(frozen=True)
class ScheduleConfig:
    """The schedule of the learning rate over a run."""

    kind: ScheduleKind = "cosine"
    """Shape: "constant", "constant_cosine" (flat, then cosine), "cosine" (warm-up, then cosine) or "steps"."""
    warmup_steps: int = 0
    """Steps of linear warm-up (cosine only)."""
    initial_factor: float = 0.0
    """Start of the warm-up, as a fraction of the peak (cosine only)."""
    final_factor: float = 0.0
    """End of the cosine, as a fraction of the peak (cosine and constant_cosine)."""
    constant_fraction: float = 0.5
    """Fraction of the run before the cosine starts (constant_cosine only)."""
    decay_points: tuple[float, ...] = (0.5, 0.8, 0.95)
    """Fractions of the run after which the rate drops (steps only)."""
    decay_factor: float = 0.1
    """Factor by which each drop multiplies the rate (steps only)."""

    def __post_init__(self) -> None:
        _check(self.kind in get_args(ScheduleKind), f"kind={self.kind!r} must be one of {get_args(ScheduleKind)}")
        _check(self.warmup_steps >= 0, f"warmup_steps={self.warmup_steps} must be 0 or more")
        for name in ("initial_factor", "final_factor", "decay_factor"):
            _check(0 <= getattr(self, name) < math.inf, f"{name}={getattr(self, name)} must be 0 or more, and finite")
        _check(0 <= self.constant_fraction < 1, f"constant_fraction={self.constant_fraction} must be in [0, 1)")
        _check(all(0 < p < 1 for p in self.decay_points), f"decay_points={self.decay_points} must lie between 0 and 1")
        if self.warmup_steps and self.kind != "cosine":
            text = f"warmup_steps={self.warmup_steps} has no effect on {self.kind!r}: only 'cosine' warms up"
            warnings.warn(text, stacklevel=3)


class Lamb(torch.optim.Optimizer):
    """LAMB (arXiv:1904.00962) as in optax: each tensor's update is scaled by its trust ratio, which is not clipped."""

    def __init__(
        self, params: ParamsT, lr: float, betas: Betas = (0.9, 0.999), eps: float = 1e-6, weight_decay: float = 0.0
    ) -> None:
        _check_rates(lr, weight_decay, betas, eps)
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        # u = m / (sqrt(v) + eps) + weight_decay w,  w <- w - lr (|w| / |u|) u;  m, v: Adam's bias-corrected means.
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                updates = self._adam_updates(params, group)
                if group["weight_decay"]:
                    torch._foreach_add_(updates, params, alpha=group["weight_decay"])
                for param, update, ratio in zip(params, updates, _trust_ratios(params, updates), strict=True):
                    param.addcmul_(update, ratio, value=-group["lr"])
        return loss

    def _adam_updates(self, params: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        grads = [param.grad for param in params if param.grad is not None]
        states = [self._state_of(param) for param in params]
        means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        # Bias correction in float64; optax corrects in float32, and its first updates differ by 7e-6 of their size.
        steps = [state["step"].add_(1).item() for state in states]
        denominators = torch._foreach_div(squares, [1 - beta2**step for step in steps])
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, group["eps"])
        updates = torch._foreach_div(means, [1 - beta1**step for step in steps])
        torch._foreach_div_(updates, denominators)
        return list(updates)

    def _state_of(self, param: Tensor) -> dict[str, Tensor]:
        state = self.state[param]
        if not state:
            # The names and types of torch.optim.AdamW, so that saving and sharding treat both alike.
            state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(param), exp_avg_sq=torch.zeros_like(param))
        return state


class Muon(torch.optim.Optimizer):
    """Muon for the matrices of the first group, AdamW for the other groups, both at AdamW's learning rates."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: Betas, eps: float) -> None:
        self._muon = torch.optim.Muon(groups[:1], lr=lr, adjust_lr_fn="match_rms_adamw")
        self._adamw = torch.optim.AdamW(groups[1:], lr=lr, betas=betas, eps=eps)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        # Loading a state replaces the groups and the state, so both optimisers get the current ones.
        self._muon.state = self._adamw.state = self.state
        self._muon.param_groups, self._adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self._muon.step()
        self._adamw.step()


def build_optimiser(
    model: nn.Module, config: OptimiserConfig, extra: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Build the optimiser of a model, with parameter groups: matrices (muon only), decayed, not decayed.

    `extra`: further parameters to learn, without decay, such as loss weights.
    """
    matrices, decayed, exempt = _groups(model, config)
    rest = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": [*exempt, *extra], "weight_decay": 0.0},
    ]
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "eps": _epsilon(config)}
    if config.kind == "muon":
        return Muon([{"params": matrices, "weight_decay": config.weight_decay}, *rest], **settings)
    return (Lamb if config.kind == "lamb" else torch.optim.AdamW)(rest, **settings)


def _groups(model: nn.Module, config: OptimiserConfig) -> tuple[list[nn.Parameter], ...]:
    group_of: dict[nn.Parameter, int] = {}  # a shared parameter is decayed if any of its owners decays it
    for path, owner in model.named_modules():
        for name, param in owner.named_parameters(recurse=False):
            if config.kind == "muon" and is_matrix(path, owner, name):
                group = 0
            else:
                group = 1 if is_decayed(owner, name, config.decay_positions) else 2
            group_of[param] = min(group, group_of.get(param, group))
    learned = {param: group for param, group in group_of.items() if param.requires_grad}
    _check(bool(learned), "every parameter is frozen: nothing is left to learn")
    return tuple([param for param, group in learned.items() if group == wanted] for wanted in range(3))


def is_matrix(path: str, owner: nn.Module, name: str) -> bool:
    """Return True if Muon updates the parameter `name` of the module at `path`: linear weights outside of adapters."""
    inner = not path.startswith(("input_adapter.", "output_adapter."))
    return inner and isinstance(owner, nn.Linear) and name == "weight"


def is_decayed(owner: nn.Module, name: str, decay_positions: bool) -> bool:
    """Return True if weight decay applies to the parameter that `owner` holds directly under `name`."""
    if isinstance(owner, _NORMS):
        return False
    if isinstance(owner, _LAYERS):
        return "bias" not in name
    # A bias that belongs to no layer is an output bias; the official EmbeddingDecoder decays it.
    return decay_positions or name == "bias"


def learning_rate(step: int, num_steps: int, optimiser: OptimiserConfig, schedule: ScheduleConfig) -> float:
    """Return the learning rate of a step (from 0) in a run of `num_steps`; after the end, the final rate."""
    _check(step >= 0, f"step={step} must be 0 or more")
    _check(num_steps > 0, f"num_steps={num_steps} must be above 0")
    return optimiser.learning_rate * _factor(step, num_steps, schedule)


def _factor(step: int, num_steps: int, schedule: ScheduleConfig) -> float:
    """Return the learning rate of a step as a fraction of the peak."""
    if schedule.kind == "constant":
        return 1.0
    if schedule.kind == "steps":
        return schedule.decay_factor ** sum(step >= int(point * num_steps) for point in schedule.decay_points)
    if schedule.kind == "constant_cosine":
        return _cosine(step, int(schedule.constant_fraction * num_steps), num_steps, schedule.final_factor)
    warmup = schedule.warmup_steps
    _check(warmup < num_steps, f"warmup_steps={warmup} must be fewer than the run's num_steps={num_steps}")
    if step < warmup:
        return schedule.initial_factor + (1 - schedule.initial_factor) * step / warmup
    return _cosine(step, warmup, num_steps, schedule.final_factor)


def _cosine(step: int, start: int, end: int, final: float) -> float:
    """Return a cosine that falls from 1 at `start` to `final` at `end`."""
    progress = min(max(step - start, 0) / (end - start), 1.0)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def _trust_ratios(params: list[Tensor], updates: list[Tensor]) -> tuple[Tensor, ...]:
    """Return |parameter| / |update| of each tensor; 1 where either norm is 0."""
    size, change = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(updates))
    return torch.where((size == 0) | (change == 0), torch.ones_like(size), size / change).unbind()


def _epsilon(config: OptimiserConfig) -> float:
    if config.epsilon is not None:
        return config.epsilon
    return 1e-6 if config.kind == "lamb" else 1e-8


def _check_rates(rate: float, weight_decay: float, betas: Betas, epsilon: float) -> None:
    _check(0 <= rate < 3e38, f"learning rate {rate} must be 0 or more, and finite in 32 bits")
    _check(0 <= weight_decay < math.inf, f"weight_decay={weight_decay} must be 0 or more, and finite")
    _check(all(0 <= beta < 1 for beta in betas), f"betas={betas} must lie in [0, 1)")
    _check(0 < epsilon < math.inf, f"epsilon={epsilon} must be above 0, and finite")


def _check(valid: bool, message: str) -> None:
    if not valid:
        raise ValueError(message)
