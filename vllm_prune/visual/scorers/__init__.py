"""Scorers that were trained for a model, and where their weights are."""
