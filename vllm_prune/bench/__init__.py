"""Load test of a running server: mixed budgets, latency and cost per class of budget."""

from .load import Load, Report, measure
from .mix import Budget, MixError, parse_mix
from .pictures import screens

__all__ = ["Budget", "Load", "MixError", "Report", "measure", "parse_mix", "screens"]
