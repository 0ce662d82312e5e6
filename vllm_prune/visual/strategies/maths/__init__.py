"""Maths that strategies share, by what it is about.

Everything accumulates in float32 whatever the input dtype, and touches no global random state.
"""

from .clusters import absorb, cluster, density_peaks, mean_by, nearest, sum_by
from .determinantal import volume_gains
from .diversity import diverse_order, farthest_points, max_sum_order
from .motion import match
from .pixels import cells_of, first_of_equals
from .segments import banded, neighbour_similarity, scenes
from .transport import sinkhorn
from .vectors import SKETCH, compared, cosine, evenly_spaced, highest, quantise, sketch, spread_to_one, unit_rows

__all__ = [
    "SKETCH",
    "absorb",
    "banded",
    "cells_of",
    "cluster",
    "compared",
    "cosine",
    "density_peaks",
    "diverse_order",
    "evenly_spaced",
    "farthest_points",
    "first_of_equals",
    "highest",
    "match",
    "max_sum_order",
    "mean_by",
    "nearest",
    "neighbour_similarity",
    "quantise",
    "scenes",
    "sinkhorn",
    "sketch",
    "spread_to_one",
    "sum_by",
    "unit_rows",
    "volume_gains",
]
