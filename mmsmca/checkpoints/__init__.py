"""Checkpoints: files, tensor names, classes, and warm starts."""
