"""Copied into the tiny checkpoint: configuration and processor, as a Molmo2 checkpoint brings its own.

transformers has no Molmo2. What vLLM asks of that code is written here anew for one fixed frame size, without
resizing frames; an image is its whole view and one crop, both alike.
"""

from types import SimpleNamespace

import numpy as np
import torch
from transformers import BatchFeature, PretrainedConfig, ProcessorMixin, Qwen2TokenizerFast

PATCH, SIDE, ROWS, COLS = 14, 3, 3, 4
HEIGHT, WIDTH = ROWS * SIDE * PATCH, COLS * SIDE * PATCH


class Molmo2Config(PretrainedConfig):
    """Three parts and the ids of special tokens."""

    model_type = "molmo2"

    def __init__(self, vit_config=None, adapter_config=None, text_config=None, **kwargs):
        self.vit_config, self.adapter_config = (
            PretrainedConfig(**(part or {})) for part in (vit_config, adapter_config)
        )
        self.text_config = PretrainedConfig(**(text_config or {}))
        super().__init__(**kwargs)

    def get_text_config(self, *args, **kwargs):
        """The language model's part."""
        return self.text_config


def tiles(first):
    """Patches of every cell of a frame whose patches start at `first`, [cells, 9]."""
    patches = first + torch.arange(ROWS * SIDE * COLS * SIDE).view(ROWS, SIDE, COLS, SIDE)
    return patches.transpose(1, 2).reshape(-1, SIDE**2)


def patches(frames):
    """uint8 [T, HEIGHT, WIDTH, 3] to float32 [T, patches, values], channels last."""
    values = torch.from_numpy(np.stack(frames)).float() / 127.5 - 1
    values = values.view(len(values), ROWS * SIDE, PATCH, COLS * SIDE, PATCH, 3).transpose(2, 3)
    return values.reshape(len(values), ROWS * SIDE * COLS * SIDE, -1)


class Molmo2Processor(ProcessorMixin):
    """Pixels to patches; what it says of the text is dropped by vLLM."""

    def __init__(self, tokenizer):
        self.tokenizer, self.chat_template = tokenizer, None
        own = {"size": {"height": HEIGHT, "width": WIDTH}, "patch_size": PATCH, "pooling_size": [SIDE, SIDE]}
        self.image_processor = SimpleNamespace(**own, max_crops=1, overlap_margins=(0, 0), image_std=[0.5] * 3)
        self.video_processor = SimpleNamespace(**own, num_frames=8, frame_sample_mode="uniform_last_frame", max_fps=2)
        self.video_processor.sampling_fps = 2
        self.image_use_col_tokens = self.use_single_crop_start_token = self.use_frame_special_tokens = True
        self.use_single_crop_col_tokens, self.video_use_col_tokens = None, False

    @classmethod
    def from_pretrained(cls, path, **kwargs):
        """Only the tokenizer has files."""
        return cls(Qwen2TokenizerFast.from_pretrained(path))

    def __call__(self, text=None, images=None, videos=None, **kwargs):
        """What vLLM takes from the real one."""
        found = {"input_ids": torch.tensor([self.tokenizer(text).input_ids])}
        count = ROWS * SIDE * COLS * SIDE
        if images:
            crops = [np.asarray(one.resize((WIDTH, HEIGHT))) for one in images for _ in range(2)]
            found["pixel_values"] = patches(crops)
            found["image_token_pooling"] = torch.cat([tiles(i * count) for _ in images for i in range(2)])
            found["image_grids"] = torch.tensor([[ROWS, COLS, ROWS, COLS]] * len(images))
            found["image_num_crops"] = torch.tensor([2] * len(images))
        if videos:
            frames = np.asarray(videos[0][0])
            found["pixel_values_videos"] = patches(frames)
            found["video_token_pooling"] = torch.cat([tiles(t * count) for t in range(len(frames))])
            found["video_grids"] = torch.tensor([[len(frames), ROWS, COLS]])
        return BatchFeature(found)
