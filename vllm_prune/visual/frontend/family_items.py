"""What a multimodal processor of the Qwen-VL kind says of its items: grids, patches and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from vllm.multimodal.parse import VideoProcessorItems

from ...grid import MODALITIES, Grid
from ..models.segments import Segments
from .frame_split import FrameSplit, frame_counts


class GridItems:
    """Mixin; families whose processors give something else than `grid_thw` override its methods.

    Attributes:
        counts_per_frame: whether text stands between frames, so that each frame's count is fixed before the tower runs;
            see `frame_split`.
        exact_image_sizes: whether `image_tokens` can say an image's size without processing one.
        sent_as: vLLM's modalities in which the items come; see `Family.sent_as`.
        marks: see `Family.marks`.
    """

    counts_per_frame: ClassVar[bool] = False
    exact_image_sizes: ClassVar[bool] = True
    sent_as: ClassVar[tuple[str, ...]] = MODALITIES
    marks: ClassVar[tuple[int, int]] = (0, 0)

    def cell_side(self) -> int:
        """Patches per side of the square that one visual token stands for."""
        return int(self.info.get_hf_config().vision_config.spatial_merge_size)  # type: ignore[attr-defined]

    def pixel_spread(self) -> float:
        """Standard deviation that the processor normalises pixels with, as a share of their full range."""
        deviations = self.info.get_hf_processor().image_processor.image_std  # type: ignore[attr-defined]
        return float(sum(deviations) / len(deviations))

    def add_segments(self, mm_items: Any, kwargs: Mapping[str, object], data: Any) -> None:
        """Note in a processor's output how the items are placed in the prompt, where grids do not say it."""

    def segments_of(self, modality: str, data: Any, index: int) -> Segments | None:
        """What `add_segments` has noted of an item; None where grids say it."""
        return None

    def grids_of(self, modality: str, data: Any) -> list[Grid]:
        """Grids of the items in a processor's output; none where it has no item of the modality."""
        thw, side = data.get(f"{modality}_grid_thw"), self.cell_side()
        rows = () if thw is None else thw.tolist()
        return [Grid(frames, height // side, width // side) for frames, height, width in rows]

    def counts_of(
        self, modality: str, count: int, grid: Grid, segments: Segments | None, patches: Any, split: FrameSplit
    ) -> tuple[int, ...] | None:
        """Counts that are fixed before the tower runs, sum `count`; None where the choice is free over the item.

        Args:
            modality: "image" or "video".
            count: K.
            grid: of the item.
            segments: of its placeholder, see `segments_of`.
            patches: see `patches_of`.
            split: the strategy's rule for the shares of frames.
        """
        if self.counts_per_frame and modality == "video":
            return frame_counts(count, grid, patches, split)
        return None

    def patches_of(self, modality: str, data: Any, index: int) -> Any:
        """Patches of an item, [patches, values], frame by frame; None for precomputed embeddings."""
        pixels = data.get("pixel_values" if modality == "image" else "pixel_values_videos")
        if pixels is None:
            return None
        counts = [int(n) for n in data[f"{modality}_grid_thw"].prod(-1)]
        start = sum(counts[:index])
        return pixels[start : start + counts[index]]

    def tokens_of(self, modality: str, placed: Any) -> int:
        """Visual tokens of an item, from its place in the prompt."""
        return int(placed.get_num_embeds()) - sum(self.marks)

    def image_tokens(self, width: int, height: int) -> int:
        """Visual tokens of an image of so many pixels, before pruning."""
        info: Any = self.info  # type: ignore[attr-defined]
        images = info.get_image_processor()
        return int(
            info.get_num_image_tokens(image_width=width, image_height=height, image_processor=images, mm_kwargs={})
        )

    def size_of(self, items: Any, modality: str, index: int, kwargs: Mapping[str, object]) -> int:
        """Visual tokens of an item that was sent, before pruning.

        Args:
            items: vLLM's parsed items of the modality.
            modality: "image" or "video".
            index: of the item.
            kwargs: the processor's.
        """
        grid = self.grid_of(items, modality, index, kwargs)
        return int(items.get_feature_size(index)) if grid is None else grid.tokens

    def grid_of(self, items: Any, modality: str, index: int, kwargs: Mapping[str, object]) -> Grid | None:
        """Grid of an item that was sent, before it is processed; None for precomputed embeddings. See `size_of`."""
        info: Any = self.info  # type: ignore[attr-defined]
        if not hasattr(items, "get_image_size" if modality == "image" else "get_frame_size"):
            return None
        processor = info.get_hf_processor(**kwargs)
        if modality == "image":
            size, frames, hf_processor = items.get_image_size(index), 1, processor.image_processor
        else:
            size, frames = _video_size(items.get(index))
            hf_processor = processor.video_processor
        processed, tokens = info._get_vision_info(
            image_width=size.width,
            image_height=size.height,
            num_frames=frames,
            image_processor=hf_processor,
            mm_kwargs=kwargs,
            modality=modality,
        )
        side = self.cell_side() * int(info.get_hf_config().vision_config.patch_size)
        rows, cols = processed.height // side, processed.width // side
        return Grid(tokens // (rows * cols), rows, cols)


def _video_size(item: Any) -> tuple[Any, int]:
    """Frame size and frame count of a video, which may come with its metadata."""
    frames = item[0] if isinstance(item, tuple) else item
    return VideoProcessorItems([frames]).get_frame_size(0), len(frames)
