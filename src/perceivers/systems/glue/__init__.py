"""GLUE: fine-tuning of the byte model on one task or on several at once (paper section 4.1 and F.4)."""

from perceivers.runs.system import System
from perceivers.systems.glue.baselines import baseline_scores
from perceivers.systems.glue.recipes import RECIPES
from perceivers.systems.glue.report import report

__all__ = ["RECIPES", "SYSTEM", "baseline_scores", "report"]

SYSTEM = System(RECIPES, baseline_scores=baseline_scores, report=report)
"""The system, for the command line."""
