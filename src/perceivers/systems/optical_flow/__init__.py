"""Optical flow: one token for each pixel; the same tokens are the queries (paper section 4.2, H)."""

from perceivers.runs.system import System
from perceivers.systems.optical_flow.baselines import baseline_scores, score_in_tiles, untrained_baseline_scores
from perceivers.systems.optical_flow.inference import estimate_flow
from perceivers.systems.optical_flow.model import PRESETS, optical_flow
from perceivers.systems.optical_flow.recipes import RECIPES
from perceivers.systems.optical_flow.report import report

__all__ = [
    "PRESETS",
    "RECIPES",
    "SYSTEM",
    "baseline_scores",
    "estimate_flow",
    "optical_flow",
    "report",
    "score_in_tiles",
    "untrained_baseline_scores",
]

SYSTEM = System(
    RECIPES,
    PRESETS,
    baseline_scores,
    report,
    scorers={"tiles": score_in_tiles},
    untrained_baselines={"flow": untrained_baseline_scores},
)
"""The system, for the command line."""
