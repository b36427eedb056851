"""Speed and memory beside the other implementations: `python -m benchmarks`."""
