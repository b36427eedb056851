"""Autoencoding of video, sound and label through one set of latents (paper section 4.3, I)."""

from perceivers.runs.system import System
from perceivers.systems.multimodal.baselines import baseline_scores
from perceivers.systems.multimodal.inference import Reconstruction, autoencode
from perceivers.systems.multimodal.model import PRESETS, multimodal
from perceivers.systems.multimodal.recipes import RECIPES
from perceivers.systems.multimodal.report import report

__all__ = ["PRESETS", "RECIPES", "SYSTEM", "Reconstruction", "autoencode", "baseline_scores", "multimodal", "report"]

SYSTEM = System(RECIPES, PRESETS, baseline_scores, report)
"""The system, for the command line."""
