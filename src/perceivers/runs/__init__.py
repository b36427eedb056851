"""Runs: training, evaluation, prediction and reports of any recipe in a folder. Published systems are not known here."""
