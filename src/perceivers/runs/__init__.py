"""Runs: training, evaluation, prediction and reports of any recipe in a folder, without knowing published systems."""
