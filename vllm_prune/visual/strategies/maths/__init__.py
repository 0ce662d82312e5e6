"""Maths that strategies share, by what it is about.

Everything accumulates in float32 whatever the input dtype, and touches no global random state.
"""

from .clusters import (
    absorb,
    cluster,
    count_by,
    density_peaks,
    drawn_centers,
    heaviest,
    mean_by,
    nearest,
    owner_weights,
    spherical_groups,
    sum_by,
)
from .determinantal import volume_gains
from .diversity import diverse_order, farthest_points, max_sum_order
from .motion import match
from .pixels import cells_of, first_of_equals
from .segments import banded, neighbour_similarity, scenes
from .transport import heaviest_columns, sinkhorn
from .vectors import SKETCH, compared, cosine, evenly_spaced, highest, quantise, sketch, spread_to_one, unit_rows

__all__ = [
    "SKETCH",
    "absorb",
    "banded",
    "cells_of",
    "cluster",
    "compared",
    "cosine",
    "count_by",
    "density_peaks",
    "diverse_order",
    "drawn_centers",
    "evenly_spaced",
    "farthest_points",
    "first_of_equals",
    "heaviest",
    "heaviest_columns",
    "highest",
    "match",
    "max_sum_order",
    "mean_by",
    "nearest",
    "neighbour_similarity",
    "owner_weights",
    "quantise",
    "scenes",
    "sinkhorn",
    "sketch",
    "spherical_groups",
    "spread_to_one",
    "sum_by",
    "unit_rows",
    "volume_gains",
]
