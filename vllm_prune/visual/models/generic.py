"""One adapter for any vision-language model of vLLM: it selects rows of what the tower puts out.

Nothing here knows a family. What an item looks like in the prompt comes from the parent's processor and travels in the
item's plan; where its tokens stand comes from the parent's position function, which is asked about the prompt as it
would be without budgets. The tower runs as a whole, as vLLM batches it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ...signals import VisualSignal
from ...telemetry import metrics
from ..item_plan import ItemPlan, decode, field_name, plan_of
from ..tower.feature_cache import Encoded
from ..tower.received_attention import Listener
from ..tower.signals import Captures, needed
from ..tower.unpooled import UnpooledFrames
from .choice import choose
from .placing import PlacedModel
from .positions import attach
from .segments import mask_of
from .unpruned_prompt import UnprunedPrompt, item_alone, run_starts

if TYPE_CHECKING:
    from .table import Family

VIDEO_TIMES = ("second_per_grid_ts", "timestamps")
"""Fields of a video that do not begin with its modality's name."""


class GenericModel(PlacedModel):
    """Mixin placed before a vLLM vision-language model; see the module.

    Attributes:
        family: the row of the table that the adapter is made from.
    """

    family: ClassVar[Family]

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        metrics.set_model_name(metrics.served_name(vllm_config.model_config))
        self._width = int(vllm_config.model_config.get_inputs_embeds_size())
        self.prepare(vllm_config)

    @property
    def output_width(self) -> int:
        """Columns of the parent's encoder output."""
        return self._width

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Encoder outputs, one per item; pruned items come as [K, width + 6] or wider, see `attach`, or with compact
        positions as [K, width].

        Raises:
            RuntimeError: the parent's outputs are not one per item.
        """
        sent_as = self.family.sent_as
        rows = {m: kwargs.pop(field_name(m), None) for m in sent_as}
        plans = [
            (decode(row), m, i) for m in sent_as if rows[m] is not None for i, row in enumerate(rows[m])
        ]  # fmt: skip
        if not any(plan for plan, _, _ in plans):
            return _rows_of_items(super().embed_multimodal(**kwargs))  # type: ignore[misc]

        def run(items: Sequence[int]) -> list[Encoded]:
            with Captures(self.listeners([plan for plan, _, _ in plans])) as captures:
                outputs = _rows_of_items(super(GenericModel, self).embed_multimodal(**kwargs))  # type: ignore[misc]
            if len(items) != len(outputs):
                raise RuntimeError(f"{type(self).__name__} gave {len(outputs)} outputs for {len(items)} items")
            captured = captures.per_item(len(items), [modality for _, modality, _ in plans], kwargs)
            return [Encoded(*item) for item in zip(outputs, captured, strict=True)]

        # Which fields belong to which item is the parent's business, so a batch is run as a whole.
        encoded = self._features.encode([plan for plan, _, _ in plans], run, apart=False)
        return tuple(
            item.rows if plan is None else self._prune(item, plan, _item_fields(kwargs, modality, i), modality)
            for item, (plan, modality, i) in zip(encoded, plans, strict=True)
        )

    def listeners(self, plans: Sequence[ItemPlan | None]) -> dict[VisualSignal, Listener]:
        """What captures signals while the tower runs; a listener that is not needed is idle."""
        return {"unpooled": UnpooledFrames(self, enabled="unpooled" in needed(plans))}

    def _prune(self, item: Encoded, plan: ItemPlan, fields: dict[str, Any], modality: str) -> Tensor:
        """Kept rows of an item, [K, width], or with their place in the run."""
        text = self.embedded_text(plan, item.rows.device)
        left = choose(plan, item.rows, self._facts, text, self._networks, item.captured)
        if self.family.positions == "compact":
            return left.rows
        return attach(left.rows, *left.placed(self._relative(plan, fields, modality).to(left.kept.device)))

    def _relative(self, plan: ItemPlan, fields: dict[str, Any], modality: str) -> Tensor:
        """Positions of an item's visual tokens relative to the first one of their run, int64 [3, M]."""
        assert plan.segments is not None
        tokens, feature = item_alone(plan, modality, fields)
        full, _ = self.unpruned_positions(tokens, [feature])
        full = full[:, mask_of(plan.segments)]
        return full - full[:, run_starts(plan.segments)]

    def unpruned_positions(self, tokens: list[int], features: list[Any]) -> tuple[Tensor, int]:
        """Positions of a prompt that nothing is pruned from, int64 [3, tokens], and what the parent adds to text."""
        if self.one_row:
            return torch.arange(len(tokens)).expand(3, -1), 0
        return super().get_mrope_input_positions(tokens, features)  # type: ignore[misc]

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Positions of a prompt; the parent's own where nothing is pruned."""
        features = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        if not any(plan_of(feature.data, feature.modality) for feature in features):
            return self.unpruned_positions(input_tokens, mm_features)
        prompt = UnprunedPrompt.of(input_tokens, features)
        positions, delta = self.unpruned_positions(prompt.tokens, prompt.features)
        return positions[:, prompt.source].contiguous(), delta + len(prompt.tokens) - len(input_tokens)


def _rows_of_items(outputs: Any) -> Any:
    """The parent's outputs, each [N, width].

    For videos of several lengths in a batch vLLM's LLaVA-OneVision gives [1, N, width], and its runner stops at that.
    """
    if isinstance(outputs, Tensor) or all(output.ndim == 2 for output in outputs):
        return outputs
    return tuple(output.flatten(0, -2) for output in outputs)


def _item_fields(kwargs: dict[str, Any], modality: str, index: int) -> dict[str, Any]:
    """Fields of one item that a position function may read."""
    times = VIDEO_TIMES if modality == "video" else ()
    of_items = {
        name: values for name, values in kwargs.items() if name in times or name.startswith(f"{modality}_")
    }  # fmt: skip
    return {name: values[index] for name, values in of_items.items() if _has(values, index)}


def _has(values: Any, index: int) -> bool:
    """Whether a field of a batch has an entry for an item; some fields hold one value for all."""
    if isinstance(values, Tensor):
        return values.ndim > 0 and len(values) > index
    return isinstance(values, Sequence) and len(values) > index
