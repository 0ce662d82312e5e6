"""Run by `test_kernels.py`, under `TRITON_INTERPRET=1` where there is no GPU to compile for."""

from __future__ import annotations

import pytest
import torch

from vllm_prune.visual.strategies.maths import diversity, kernels
from vllm_prune.visual.strategies.maths.vectors import STEP


def table_of(units: torch.Tensor, valid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances and the distance to the nearest neighbour, as `farthest_points` hands them on."""
    distance = ((1 - units @ units.mT) * STEP).round()
    lonely = diversity._fill(distance.clone(), torch.inf, valid).amin(-1).clamp_max(2 * STEP)
    return diversity._fill(distance, -torch.inf, valid), lonely.masked_fill(~valid, -torch.inf)


def main() -> None:
    """Lengths that are no powers of two, padding, equal cells, and more steps than there are cells."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator, checked = torch.Generator().manual_seed(0), 0
    for segments, n, steps in ((3, 5, 5), (2, 70, 31), (4, 256, 64), (1, 300, 40)):
        for alike in (False, True):
            units = torch.randn(segments, n, 16, generator=generator)
            if alike:
                units[:, n // 2 :] = units[:, :1]
            units = torch.nn.functional.normalize(units, dim=-1)
            valid = torch.ones(segments, n, dtype=torch.bool)
            valid[-1, n - n // 3 :] = False
            table, lonely = table_of(units, valid)
            first = lonely.max(1).indices
            want = diversity.gains_by_steps(table, lonely, first, steps, 2 * STEP)
            on_device = [one.to(device) for one in (table, lonely, first)]
            got = kernels.max_min_gains(*on_device, steps, 2 * STEP).cpu()
            assert torch.equal(got, want)
            # Not idle: cells were picked, and other first picks would have been noticed.
            assert torch.isfinite(want).sum(1).max() == min(steps, n)
            other = kernels.max_min_gains(*on_device[:2], (on_device[2] + 1) % (n // 2), steps, 2 * STEP).cpu()
            assert not torch.equal(other, want)
            checked += 1
    with pytest.raises(ValueError, match="at most 8192"):
        kernels.max_min_gains(torch.empty(1, 1, 1), torch.empty(1, 8193), torch.zeros(1).long(), 2, 1.0)
    print(checked, "checked")


main()
