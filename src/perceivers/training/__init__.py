"""One loop for any schema; optimisers and schedules of the paper; checkpoints."""
