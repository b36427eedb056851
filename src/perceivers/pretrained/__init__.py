"""Weights of others: reading the files of DeepMind and Hugging Face."""
