"""Patches `ModelConfig`, so that models with one position per token can keep tokens at their original positions.

vLLM's runners let a model lay out a prompt's positions, and add the right distance to those of decoded tokens, for
M-RoPE models alone. Both runners learn from two properties whether a model is one. A family of the table with
`positions: original` is shown as M-RoPE with three equal rows; its adapter hands the model one of them.
"""

from __future__ import annotations

from typing import Any

from .signatures import holder

ROWS = 3
_MARK = "_vllm_prune_one_row"


def shown_as_mrope(model_config: Any) -> bool:
    """Whether a model has one position per token and an adapter that keeps original positions."""
    from ..visual.models.table import FAMILIES

    # Not there yet while vLLM resolves the architecture.
    family = FAMILIES.get(getattr(model_config, "_architecture", ""))
    return family is not None and family.one_row


def patch_model_config() -> None:
    """Let `uses_mrope` and `mrope_num_dims` speak for our families. Idempotent."""
    config: Any = holder("ModelConfig.uses_mrope")
    if getattr(config, _MARK, False):
        return
    uses, dims = config.uses_mrope.fget, config.mrope_num_dims.fget

    def uses_mrope(self: Any) -> bool:
        return bool(uses(self)) or shown_as_mrope(self)

    def mrope_num_dims(self: Any) -> int:
        return int(dims(self)) if uses(self) or not shown_as_mrope(self) else ROWS

    config.uses_mrope, config.mrope_num_dims = property(uses_mrope), property(mrope_num_dims)
    setattr(config, _MARK, True)
