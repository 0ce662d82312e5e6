"""Intervals against closed forms, and against resampling done the long way."""

from __future__ import annotations

import numpy as np
import pytest

from vllm_prune.sweep.statistics import paired, wilson


def test_wilson_by_hand() -> None:
    low, high = wilson(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert wilson(0, 5)[0] == 0
    assert wilson(5, 5)[1] == 1


def test_paired_equals_resampling_samples() -> None:
    rng = np.random.default_rng(3)
    ours, theirs = (rng.random(150) < 0.8).tolist(), (rng.random(150) < 0.6).tolist()
    mean, low, high = paired(ours, theirs)
    differences = np.array(ours, dtype=int) - np.array(theirs, dtype=int)
    means = differences[rng.integers(0, 150, (20_000, 150))].mean(1)
    assert mean == pytest.approx(differences.mean())
    assert (low, high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.01)


def test_paired_is_deterministic_and_has_a_sign() -> None:
    ours, theirs = [True, True, False, True], [True, False, False, False]
    assert paired(ours, theirs) == paired(ours, theirs)
    assert paired(ours, theirs)[0] == 0.5
    assert paired(theirs, ours)[0] == -0.5
    assert paired(ours, ours) == (0, 0, 0)


def test_paired_needs_pairs() -> None:
    with pytest.raises(ValueError, match="cannot pair 1 with 2"):
        paired([True], [True, False])
    with pytest.raises(ValueError, match="cannot pair 0 with 0"):
        paired([], [])
