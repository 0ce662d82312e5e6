"""Families beside the two that all engine tests run on: tiny checkpoints, their oracle, and one row each in `rows`."""
