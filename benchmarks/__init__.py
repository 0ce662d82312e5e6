"""Benchmarks, generated tasks and the demo model's recipe; not installed."""
