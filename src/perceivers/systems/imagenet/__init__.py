"""ImageNet classification with Fourier, learned and convolutional features (paper section 4.5)."""

from perceivers.runs.system import System
from perceivers.systems.imagenet.baselines import baseline_scores
from perceivers.systems.imagenet.inference import classify
from perceivers.systems.imagenet.model import PRESETS, imagenet
from perceivers.systems.imagenet.recipes import RECIPES
from perceivers.systems.imagenet.report import report

__all__ = ["PRESETS", "RECIPES", "SYSTEM", "baseline_scores", "classify", "imagenet", "report"]

SYSTEM = System(RECIPES, PRESETS, baseline_scores, report)
"""The system, for the command line."""
