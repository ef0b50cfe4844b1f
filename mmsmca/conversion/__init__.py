"""Conversion of a trained DINO into an SMCA-DINO."""
