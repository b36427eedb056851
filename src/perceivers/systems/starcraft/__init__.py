"""StarCraft II: the entity encoder, trained on replays alone (paper section B)."""

from perceivers.runs.system import System
from perceivers.systems.starcraft.baselines import baseline_scores
from perceivers.systems.starcraft.model import EntityEncoder, schema
from perceivers.systems.starcraft.recipes import RECIPES
from perceivers.systems.starcraft.report import report

__all__ = ["RECIPES", "SYSTEM", "EntityEncoder", "baseline_scores", "report", "schema"]

SYSTEM = System(RECIPES, baseline_scores=baseline_scores, report=report)
"""The system, for the command line."""
