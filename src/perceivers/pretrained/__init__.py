"""Pretrained weights: model folders, the hub, and the files of DeepMind, Hugging Face and krasserm."""
