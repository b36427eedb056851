"""Handwritten digits: class and whole picture from a set of some pixels. Not in the paper; the smallest system."""

from perceivers.runs.system import System
from perceivers.systems.digits.baselines import baseline_scores
from perceivers.systems.digits.recipes import RECIPES, recipe
from perceivers.systems.digits.report import report

__all__ = ["RECIPES", "SYSTEM", "baseline_scores", "recipe", "report"]

SYSTEM = System(RECIPES, baseline_scores=baseline_scores, report=report)
"""The system, for the command line."""
