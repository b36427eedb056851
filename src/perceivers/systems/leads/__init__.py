"""Weather at any lead time: one encoded past, decoded at several lead times that condition the decoder."""

from perceivers.runs.system import System
from perceivers.systems.leads.baselines import baseline_scores
from perceivers.systems.leads.recipes import RECIPES
from perceivers.systems.leads.report import report

__all__ = ["RECIPES", "SYSTEM", "baseline_scores", "report"]

SYSTEM = System(RECIPES, baseline_scores=baseline_scores, report=report)
"""The system, for the command line."""
