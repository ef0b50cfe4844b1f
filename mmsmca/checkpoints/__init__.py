"""Checkpoints: files, names, warm starts, and what is checked before a run."""
