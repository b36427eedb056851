"""Ablations: the effect of each option of the config on small tasks; `python -m benchmarks.ablations` runs them."""
