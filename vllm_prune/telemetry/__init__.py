"""Metrics and spans. Imports nothing else of the package."""
