"""Accuracy against cost: the same requests under several budgets on a running server, graded and compared."""

from .arms import UNPRUNED, Arm, kv_arms, visual_arms
from .client import SweepError
from .run import Cell, run
from .samples import DataError, Sample, read_jsonl

__all__ = [
    "UNPRUNED",
    "Arm",
    "Cell",
    "DataError",
    "Sample",
    "SweepError",
    "kv_arms",
    "read_jsonl",
    "run",
    "visual_arms",
]
