"""Checks before a run: config, data, checkpoint, and a trial step."""
