"""AudioSet: multi-label classification of clips from sound and pictures (paper section C)."""

from perceivers.runs.system import System
from perceivers.systems.audioset.baselines import baseline_scores
from perceivers.systems.audioset.model import PRESETS, audioset
from perceivers.systems.audioset.recipes import RECIPES
from perceivers.systems.audioset.report import report

__all__ = ["PRESETS", "RECIPES", "SYSTEM", "audioset", "baseline_scores", "report"]

SYSTEM = System(RECIPES, PRESETS, baseline_scores, report)
"""The system, for the command line."""
