"""Generated tasks with exact answers, as OpenAI chat requests."""

from .screens import COLOURS, LABELS, SHAPES, Sample, sample

__all__ = ["COLOURS", "LABELS", "SHAPES", "Sample", "sample"]
