"""Backbones that MMDetection lacks."""
