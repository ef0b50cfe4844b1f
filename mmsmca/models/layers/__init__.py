"""Layers of encoder and decoder."""
