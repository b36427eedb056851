"""Masked language modelling on bytes and on SentencePiece tokens (paper section 4.1)."""

from perceivers.runs.system import System
from perceivers.systems.language.baselines import baseline_scores
from perceivers.systems.language.inference import Filled, fill_mask
from perceivers.systems.language.model import PRESETS, language
from perceivers.systems.language.recipes import RECIPES, fit_tokenizer
from perceivers.systems.language.report import report

__all__ = [
    "PRESETS",
    "RECIPES",
    "SYSTEM",
    "Filled",
    "baseline_scores",
    "fill_mask",
    "fit_tokenizer",
    "language",
    "report",
]

SYSTEM = System(RECIPES, PRESETS, baseline_scores, report)
"""The system, for the command line."""
