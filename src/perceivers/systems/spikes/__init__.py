"""Spikes: the movement of a hand from the spikes of many neurons, in many sessions (POYO). Not in the paper."""

from perceivers.runs.system import System
from perceivers.systems.spikes.baselines import baseline_scores
from perceivers.systems.spikes.recipes import RECIPES, recipe
from perceivers.systems.spikes.report import report

__all__ = ["RECIPES", "SYSTEM", "baseline_scores", "recipe", "report"]

SYSTEM = System(RECIPES, baseline_scores=baseline_scores, report=report)
"""The system, for the command line."""
