"""Solid shapes from noisy points: inside or outside, at any point (3DShape2VecSet, arXiv:2301.11445)."""

from perceivers.runs.system import System
from perceivers.systems.shapes.baselines import baseline_scores
from perceivers.systems.shapes.recipes import RECIPES, recipe
from perceivers.systems.shapes.report import report

__all__ = ["RECIPES", "SYSTEM", "baseline_scores", "recipe", "report"]

SYSTEM = System(RECIPES, baseline_scores=baseline_scores, report=report)
"""The system, for the command line."""
