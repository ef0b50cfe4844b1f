"""Counting and measuring: FLOPs, time, memory."""
