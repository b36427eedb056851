"""Spikes: the movement of a hand from the spikes of many neurons, in many sessions (POYO). Not in the paper."""

from perceivers.runs.system import System
from perceivers.systems.spikes.baselines import baseline_scores
from perceivers.systems.spikes.recipes import RECIPES

__all__ = ["RECIPES", "SYSTEM", "baseline_scores"]

SYSTEM = System(RECIPES, baseline_scores=baseline_scores)
"""The system, for the command line."""
