"""Training: one loop for every schema, the paper's optimisers and schedules, checkpoints."""
