"""Items that are drawn smaller before the processor sees them; see `strategies.resize`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from vllm.multimodal.parse import MultiModalDataItems

from ...budget.allocate import plan
from ...budget.errors import BudgetError
from ...catalogue import VISUAL
from ...grid import Grid
from .family_items import GridItems
from .granted_item import Grant, Grants
from .item_cache import ItemCache
from .media_uuids import MissingMediaError

TEXT = {"input_ids", "attention_mask", "mm_token_type_ids"}
"""Fields of a processor's output that tell of the text that it was called with, which nobody reads."""


class ResizingProcessor(GridItems):
    """Mixin placed before a vLLM multimodal processor: items that a strategy draws smaller are processed at that size.

    Such an item is no different from a small one that is not pruned: it has no plan, and the worker knows nothing of
    it. Only its cache key and the reports say what it was.
    """

    _item_cache: ItemCache

    def smaller(self, grant: Grant) -> Grid | None:
        """Grid that an item is drawn at, None for one that keeps its own.

        Raises:
            BudgetError: its budget is too small for that.
        """
        grid = self._item_cache.grid(grant.base)
        if grant.budget is None or not grant.resizes or grid is None:
            return None
        count = plan(grid, grant.budget)
        if count == grid.tokens:
            return None
        try:
            return VISUAL.create(grant.budget.strategy).resized(grid, count)
        except ValueError as error:
            name = grant.budget.strategy
            raise BudgetError(
                f"strategy {name!r}: {error}; raise the budget, or name another strategy", "pruning.visual.keep"
            ) from None

    def check_resizable(self, items: Any, modality: str, grants: Sequence[Grant], kwargs: Any) -> None:
        """Learn the sizes of items that are to be drawn smaller.

        Args:
            items: vLLM's parsed items of the modality.
            modality: of the items.
            grants: one per item.
            kwargs: the processor's.

        Raises:
            BudgetError: an item that cannot be drawn, or a budget that is too small.
            MissingMediaError: an item of unknown size that was sent by its uuid only.
        """
        for i, grant in enumerate(grants):
            if not grant.resizes:
                continue
            if self._item_cache.grid(grant.base) is None:
                self._item_cache.keep_grid(grant.base, self._size(items, modality, i, kwargs))
            self.smaller(grant)

    def _size(self, items: Any, modality: str, index: int, kwargs: Mapping[str, object]) -> Grid:
        if items.get(index) is None:
            raise MissingMediaError(modality, index, "its size, from which it is drawn smaller, is not known here")
        grid = self.grid_of(items, modality, index, kwargs)
        if grid is None:
            raise BudgetError(
                f"{modality} {index} came as embeddings, which cannot be drawn smaller; name another strategy",
                "pruning.visual.strategy",
            )
        return grid

    def processed(self, mm_items: Any, kwargs: Mapping[str, object], grants: Grants) -> Any:
        """Output of the parent's processor, in which items that a strategy draws smaller are so.

        Args:
            mm_items: vLLM's parsed items.
            kwargs: the processor's, without ours.
            grants: of the items.
        """
        if not any(grant.resizes for grant in chain.from_iterable(grants.values())):
            return super()._apply_hf_processor_main(mm_items=mm_items, hf_kwargs=kwargs)  # type: ignore[misc]
        outputs = []
        for modality, items in mm_items.items():
            if any(grant.resizes for grant in grants.get(modality, ())):
                outputs += [self._alone(modality, items[i], grant, kwargs) for i, grant in enumerate(grants[modality])]
            else:
                outputs.append(self._parent(MultiModalDataItems({modality: items}), kwargs))
        return _joined(outputs)

    def _alone(self, modality: str, item: Any, grant: Grant, kwargs: Mapping[str, object]) -> Any:
        """Output for one item of those whose siblings are drawn smaller."""
        smaller = self.smaller(grant)
        if smaller is None:
            return self._parent(self._parsed(modality, item), kwargs)
        output = self._parent(self._parsed(modality, self._drawn(item, modality, smaller)), _as_it_is(kwargs))
        size, frames = self._item_cache.grid(grant.base), int(output[f"{modality}_grid_thw"][0][0])
        assert size is not None
        if frames == size.frames:
            return output
        # The processor has taken fewer of the frames than it was sent.
        self._item_cache.keep_grid(grant.base, Grid(frames, size.rows, size.cols))
        return self._alone(modality, item, grant, kwargs)

    def _parent(self, mm_items: Any, kwargs: Mapping[str, object]) -> Any:
        return super()._apply_hf_processor_main(mm_items=mm_items, hf_kwargs=kwargs)  # type: ignore[misc]

    def _parsed(self, modality: str, item: Any) -> Any:
        info: Any = self.info  # type: ignore[attr-defined]
        return info.parse_mm_data({modality: [item]}, validate=False)

    def _drawn(self, item: Any, modality: str, grid: Grid) -> Any:
        side = self.cell_side() * int(self.info.get_hf_config().vision_config.patch_size)  # type: ignore[attr-defined]
        height, width = grid.rows * side, grid.cols * side
        if modality == "image":
            return drawn(item, height, width)
        frames, *metadata = item if isinstance(item, tuple) else (item,)
        smaller = np.stack([np.asarray(drawn(frame, height, width)) for frame in frames])
        return (smaller, *metadata) if metadata else smaller


def drawn(picture: Any, height: int, width: int) -> Image.Image:
    """A picture at another size, by the interpolation that processors use: bicubic, with antialiasing.

    Args:
        picture: a PIL image, or an array or tensor of bytes, [H, W, 3] or [3, H, W].
        height, width: in pixels.
    """
    if isinstance(picture, Image.Image):
        picture = picture.convert("RGB")
    # A copy, as PyTorch takes no array that is read-only.
    pixels = picture if isinstance(picture, Tensor) else torch.from_numpy(np.array(picture))
    if pixels.shape[-1] == 3:
        pixels = pixels.permute(2, 0, 1)
    smaller = interpolate(pixels[None].float(), (height, width), mode="bicubic", antialias=True)[0]
    return Image.fromarray(smaller.round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy())


def _as_it_is(kwargs: Mapping[str, object]) -> dict[str, object]:
    """Arguments with which a processor takes a picture at its size: left to itself it enlarges small ones."""
    return {**kwargs, "do_resize": False}


def _joined(outputs: Sequence[Any]) -> Any:
    """Outputs of a processor for some items each as one for all: rows or entries of the items one after the other."""
    names = {name for one in outputs for name in one} - TEXT
    fields = {name: [one[name] for one in outputs if name in one] for name in sorted(names)}
    whole = type(outputs[0])()
    for name, parts in fields.items():
        whole[name] = torch.cat(parts) if isinstance(parts[0], Tensor) else list(chain.from_iterable(parts))
    return whole
