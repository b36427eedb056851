"""Algorithms that give the dense model's numbers in less time and memory; `core/layers.py` has the seam to them."""

from perceivers.core.fast.fused import attend
from perceivers.core.fast.hooks import check_unhooked
from perceivers.core.fast.linear_maps import known_linear_map
from perceivers.core.fast.onednn import apply_linear, linear
from perceivers.core.fast.planner import Plan

__all__ = ["Plan", "apply_linear", "attend", "check_unhooked", "known_linear_map", "linear"]
