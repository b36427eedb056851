"""The architecture: arrays in, arrays out. Start with perceiver.py."""
