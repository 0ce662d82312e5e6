"""Intervals for shares of right answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927).

    Args:
        right: successes out of `n`, `n` at least 1.
        n: trials.
        z: normal quantile.
    """
    share, spread = right / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired(ours: Sequence[bool], theirs: Sequence[bool], seed: int = 0) -> tuple[float, float, float]:
    """Mean difference of two arms on the same samples, with its 95% bootstrap interval over samples.

    A sample contributes -1, 0 or 1, so resampling samples is drawing how often each of the three occurs: one
    multinomial draw per resample. Equal arguments give equal intervals.

    Args:
        ours: right or wrong per sample.
        theirs: the other arm's, in the same order.
        seed: of the resampling.

    Returns:
        Difference (ours minus theirs), lower and upper bound.

    Raises:
        ValueError: no samples, or lengths that differ.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"cannot pair {len(ours)} with {len(theirs)} answers")
    differences = np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)
    n = len(differences)
    shares = [float((differences == value).mean()) for value in (-1, 0, 1)]
    draws = np.random.default_rng(seed).multinomial(n, shares, size=RESAMPLES)
    means = (draws[:, 2] - draws[:, 0]) / n
    low, high = np.percentile(means, [2.5, 97.5])
    return float(differences.mean()), float(low), float(high)
