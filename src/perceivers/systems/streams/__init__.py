"""Sensors, read in short windows: the latents of each window begin the next, so they remember what came before."""

from perceivers.runs.system import System
from perceivers.systems.streams.baselines import baseline_scores
from perceivers.systems.streams.recipes import RECIPES
from perceivers.systems.streams.report import report

__all__ = ["RECIPES", "SYSTEM", "baseline_scores", "report"]

SYSTEM = System(RECIPES, baseline_scores=baseline_scores, report=report)
"""The system, for the command line."""
