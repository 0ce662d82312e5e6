"""Configuration, tokenizer and processor of the demo model, in the files that vLLM and transformers load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from ..tasks import GENERATORS

SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' or 'image' in c or 'image_url' in c %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type'] == 'video' or 'video' in c or 'video_url' in c %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in c %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 640
HIDDEN = 192


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE whose merges come from the tasks' own text, so that their words are single tokens.

    The class is the plain one: Qwen2's own splits text by rules of its own when it is loaded, whatever the file says,
    and the model would be asked with other tokens ("picture", " ", "1") than it was trained with ("picture", " 1").
    """
    corpus = [text for i in range(400) for text in _texts(i)]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = VOCABULARY - len(SPECIALS)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIALS), chat_template=TEMPLATE,
    )  # fmt: skip


def _texts(number: int) -> list[str]:
    # Rendered pages ask what screens ask, and may not be there.
    found = [generate("train", number) for name, generate in GENERATORS.items() if name != "pages"]
    parts = [part for one in found for turn in one.turns for part in one.parts(turn) if isinstance(part, str)]
    # Codes stay two tokens: a pair that the merges happen to know would be another task.
    words = [turn.answer for one in found for turn in one.turns if turn.kind != "code"]
    return [*parts, *words, "system\nuser\n", "assistant\n"]


def config(words: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """About 2.7M parameters: a two-block tower and a four-layer decoder.

    The rotary sections give time the three fastest frequencies, rows the next two and columns the rest, whose first
    ones still tell neighbouring columns apart; the slow ones stay for content.
    """
    ids = {name: words.convert_tokens_to_ids(name) for name in SPECIALS}
    rope = {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [3, 2, 11]}
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 512, "num_hidden_layers": 4,
            "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 16384,
            "rope_parameters": rope, "rope_scaling": {**rope, "type": "mrope"}, "tie_word_embeddings": False,
            "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"],
        },
        vision_config={
            "depth": 2, "hidden_size": 128, "intermediate_size": 256, "num_heads": 4, "out_hidden_size": HIDDEN,
            "fullatt_block_indexes": [1], "window_size": 112, "patch_size": 14, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "tokens_per_second": 2,
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip


def save(model: Qwen2_5_VLForConditionalGeneration, words: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights in bfloat16, tokenizer and processor."""
    import copy

    model = copy.deepcopy(model).to(torch.bfloat16)
    model.generation_config.eos_token_id = words.eos_token_id
    model.generation_config.pad_token_id = words.pad_token_id
    model.save_pretrained(folder)
    # vLLM normalises videos with the image processor's values, so both are the same.
    common: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    limits = {"min_pixels": 4 * 28 * 28, "max_pixels": 4096 * 28 * 28}
    images = Qwen2VLImageProcessor(**common, **limits)
    videos = Qwen2VLVideoProcessor(**common, **limits)
    processor = Qwen2_5_VLProcessor(
        image_processor=images, tokenizer=words, video_processor=videos, chat_template=TEMPLATE
    )
    processor.save_pretrained(folder)
    words.save_pretrained(folder)
