"""Handwritten digits: some pixels in as a set, the class and the whole picture out. Ours, and the smallest."""

from perceivers.runs.system import System
from perceivers.systems.digits.baselines import baseline_scores
from perceivers.systems.digits.recipes import RECIPES, recipe
from perceivers.systems.digits.report import report

__all__ = ["RECIPES", "SYSTEM", "baseline_scores", "recipe", "report"]

SYSTEM = System(RECIPES, baseline_scores=baseline_scores, report=report)
"""What the command knows of it."""
