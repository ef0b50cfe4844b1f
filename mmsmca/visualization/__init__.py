"""Figures of where the queries look, also over training: see ``docs/visualization.md``."""
